"""`unweft bench`: run benchmarks. Only the chosen benchmark imports heavy modules (torch)."""

from __future__ import annotations

import importlib
import json as json_
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from peers.errors import InputError

if TYPE_CHECKING:
    from emulation.bench.harness.figures import Findings
    from emulation.scenario.schema import Scenario

Given = dict[str, Sequence[int] | int | None]  # the options of the command, by name
EXAMPLE = "Example: unweft bench transport --json transport.json"
WIDTH = 140  # columns of tables where stdout is no terminal
NAMES = ("transport", "shaper", "wire", "rounds")
WHOLE_RUNS = (
    "accounting",
    "clock",
    "churn",
    "hostile",
    "join",
    "load",
    "membership",
    "partition",
    "resume",
    "scale",
    "watch",
)  # each takes minutes, so each runs only when it is named
OPTIONS = {  # the benchmarks that have each option
    "n": ("rounds", "membership", "load", "watch"),
    "seeds": ("churn", "resume"),
    "starts": ("membership",),
    "hostile": ("churn",),
    "messages": ("hostile",),
    "trials": ("resume",),
    "sizes": ("scale",),
    "rounds": ("scale",),
}
SCENARIOS = {
    "clock": Path("scenarios/demo.toml"),
    "churn": Path("scenarios/soak.toml"),
    "partition": Path("scenarios/partition.toml"),
}
WITH_HOSTILE = Path("scenarios/soak-hostile.toml")  # for `churn --hostile`


def bench(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help=f"{', '.join(NAMES)} (default: all of these), or {', '.join(WHOLE_RUNS)}."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="File for all figures.")] = None,
    n: Annotated[
        list[int] | None,
        typer.Option(
            "--n",
            help="rounds, membership, load, watch: number of devices, may be repeated; "
            "default 8, 16, 32 (load 12, watch 16).",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="churn, resume: a seed; may be repeated. Default: 0.")
    ] = None,
    hostile: Annotated[
        int | None,
        typer.Option(min=1, help="churn: number of initial devices that are hostile members. Default: none."),
    ] = None,
    messages: Annotated[
        int | None, typer.Option(min=1, help="hostile: number of hostile messages. Default: 100000.")
    ] = None,
    starts: Annotated[
        int | None, typer.Option(min=1, help="membership: number of starts of each size. Default: 10.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="resume: number of killed runs for each seed. Default: 5.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="scale: numbers of devices. Default: 16,32,64,128,200."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="scale: rounds that are measured. Default: 3.")
    ] = None,
) -> None:
    """Run benchmarks: figures, and their ratios to a reference measured in the same run."""
    allowed = (*NAMES, *WHOLE_RUNS)
    if name is not None and name not in allowed:
        raise InputError(f"NAME: {name!r} is no benchmark; allowed: {', '.join(allowed)}")
    if n and min(n) < 2:
        raise InputError(f"--n: {min(n)}; allowed: 2 devices or more")
    if seed and min(seed) < 0:
        raise InputError(f"--seed: {min(seed)}; allowed: 0 or more")
    if json is not None and not json.absolute().parent.is_dir():
        raise InputError(f"--json: there is no folder {json.absolute().parent}")
    numbers = None if sizes is None else _sizes(sizes)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    found = []
    for one in NAMES if name is None else (name,):
        given: Given = {"n": n, "seeds": seed, "starts": starts, "hostile": hostile, "messages": messages}
        given |= {"trials": trials, "sizes": numbers, "rounds": rounds}
        findings = _run(one, given)
        findings.print(console)
        found.append(findings)
        if json is not None:  # after each benchmark: an interrupt of a later one loses nothing
            _write(json, found)


def _sizes(text: str) -> list[int]:
    """Numbers between commas. Raises InputError for another text."""
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise InputError(f"--sizes: {text!r}; allowed: numbers of devices between commas, as 16,32") from None


def _run(name: str, given: Given) -> Findings:
    module: Any = importlib.import_module(f"emulation.bench.{name}")
    try:
        found: Findings = module.run(*_scenario(name, given), **_numbers(name, given))
    except RuntimeError as error:  # one of its processes failed
        print(f"unweft: bench {name}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    return found


def _scenario(name: str, given: Mapping[str, object]) -> tuple[Scenario, ...]:
    """The repository's scenario that a benchmark runs, if any. Raises InputError if the file is missing."""
    from emulation.scenario.loading import load

    if name == "churn" and given["hostile"]:
        return (load(WITH_HOSTILE),)
    return (load(SCENARIOS[name]),) if name in SCENARIOS else ()


def _numbers(name: str, given: Given) -> dict[str, Sequence[int] | int]:
    """The given options that a benchmark has."""
    return {
        "devices" if option == "n" else option: value
        for option, value in given.items()
        if value and name in OPTIONS[option]
    }


def _write(path: Path, found: Sequence[Findings]) -> None:
    figures = [findings.to_dict() for findings in found]
    path.write_text(json_.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
