"""`unweft bench`: run benchmarks. Only the chosen benchmark imports heavy modules (torch)."""

from __future__ import annotations

import importlib
import json as json_
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from emulation.commands.output_folder import check_file
from peers.errors import InputError

if TYPE_CHECKING:
    from emulation.bench.harness.figures import Findings
    from emulation.scenario.schema import Scenario

Given = dict[str, Sequence[int] | Sequence[float] | int | None]  # the options of the command, by name
EXAMPLE = "Example: unweft bench transport --json transport.json"
NONE = "none"
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
    "memory",
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
    "virtual": ("scale",),
    "rounds": ("scale", "memory"),
    "degree": ("scale",),
    "churn": ("scale",),
    "budget": ("scale",),
}
SAVING = ("scale",)  # benchmarks that write their figures after each size
SCENARIOS = {
    "clock": Path("demo"),
    "churn": Path("soak"),
    "memory": Path("llm"),
    "partition": Path("partition"),
}
WITH_HOSTILE = Path("soak-hostile")  # for `churn --hostile`


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
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=V",
            help=f"{', '.join(SCENARIOS)}: replaces a value of the scenario; may be repeated.",
        ),
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
        typer.Option(metavar="N,N", help="scale: numbers of devices, or none. Default: 16,32,64,128,200."),
    ] = None,
    virtual: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="scale: the same in virtual time. Default: 4,8,16."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="scale, memory: rounds that are measured. Default: 3.")
    ] = None,
    degree: Annotated[
        list[int] | None,
        typer.Option(help="scale: the degree of all runs (4), then other degrees in virtual time."),
    ] = None,
    churn: Annotated[
        list[float] | None,
        typer.Option(help="scale: events a round in further runs in virtual time; may be repeated."),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(help="scale: budget in bytes of further runs in virtual time; may be repeated."),
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
    if set_ and name not in SCENARIOS:
        raise InputError(f"--set: {name or 'no benchmark'} has no scenario; allowed: {', '.join(SCENARIOS)}")
    check_file("--json", json)
    _check_variants(degree, churn, budget)
    numbers = {"sizes": _sizes("--sizes", sizes), "virtual": _sizes("--virtual", virtual)}
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    found: list[Findings] = []
    for one in NAMES if name is None else (name,):
        given: Given = {"n": n, "seeds": seed, "starts": starts, "hostile": hostile, "messages": messages}
        given |= {"trials": trials, "rounds": rounds, **numbers}
        given |= {"degree": degree, "churn": churn, "budget": budget}
        scenarios = _scenario(one, bool(hostile), set_ or ())
        findings = _run(
            one, given, scenarios, lambda so_far: None if json is None else _write(json, [*found, so_far])
        )
        findings.print(console)
        found.append(findings)
        if json is not None:  # after each benchmark: an interrupt of a later one loses nothing
            _write(json, found)


def _sizes(option: str, text: str | None) -> list[int] | None:
    """Numbers between commas; None if nothing is given. Raises InputError for another text."""
    if text is None or text == NONE:
        return None if text is None else []
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        allowed = f"numbers of devices between commas, as 16,32, or {NONE}"
        raise InputError(f"{option}: {text!r}; allowed: {allowed}") from None


def _check_variants(
    degree: Sequence[int] | None, churn: Sequence[float] | None, budget: Sequence[int] | None
) -> None:
    """Raises InputError for values that no scenario may have."""
    for one in degree or ():
        if one < 2 or one % 2:
            raise InputError(f"--degree: {one}; allowed: an even number of neighbours, 2 or more")
    for rate in churn or ():
        if not 0 < rate <= 10:
            raise InputError(f"--churn: {rate:g}; allowed: more than 0, up to 10 events a round")
    for bytes_ in budget or ():
        if bytes_ < 1:
            raise InputError(f"--budget: {bytes_}; allowed: 1 byte or more")


def _run(
    name: str, given: Given, scenarios: Sequence[Scenario], save: Callable[[Findings], None]
) -> Findings:
    """`save`: writes what a long benchmark has measured so far."""
    module: Any = importlib.import_module(f"emulation.bench.{name}")
    saves: dict[str, Any] = {"save": save} if name in SAVING else {}
    try:
        found: Findings = module.run(*scenarios, **_numbers(name, given), **saves)
    except RuntimeError as error:  # one of its processes failed
        print(f"unweft: bench {name}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    return found


def _scenario(name: str, hostile: bool, overrides: Sequence[str]) -> tuple[Scenario, ...]:
    """The repository's scenario that a benchmark runs, if any. Raises InputError if it is not possible."""
    from emulation.scenario.loading import load

    if name not in SCENARIOS:
        return ()
    path = WITH_HOSTILE if name == "churn" and hostile else SCENARIOS[name]
    return (load(path, overrides),)


def _numbers(name: str, given: Given) -> dict[str, Sequence[int] | Sequence[float] | int]:
    """The given options that a benchmark has."""
    return {
        "devices" if option == "n" else option: value
        for option, value in given.items()
        if (value or (value == [] and option in ("sizes", "virtual"))) and name in OPTIONS[option]
    }


def _write(path: Path, found: Sequence[Findings]) -> None:
    figures = [findings.to_dict() for findings in found]
    path.write_text(json_.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
