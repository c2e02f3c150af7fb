"""`unweft experiment`: the runs behind a published table, all arms and seeds (docs/experiments.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console

from emulation.commands.output_folder import claimed
from emulation.launch import interrupts
from peers.errors import InputError

if TYPE_CHECKING:
    from emulation.experiments.catalogue import Scale

Work = Callable[[Console], object]
PLAIN = ("forgetting", "wireless", "baselines", "sequence")  # experiments without --set and --publish
EXAMPLE = "Example: unweft experiment ablation --scale compact --seeds 0-2 --jobs 2 --out ablation"


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="ablation, paper, regimes, joins, recovery, allocation, wireless, forgetting, baselines or "
            "sequence.",
        ),
    ],
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N|A-B|A,B",
            help="Paired seeds: so many judging seeds (from 100 on), or a range or list, such as 0-3 while "
            "developing; default: 10 judging seeds (smoke: 1).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, new or of this experiment; default: experiments/NAME-SCALE."),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="full, medium, compact, small, or smoke, which only tests the command.")
    ] = "full",
    arms: Annotated[
        str,
        typer.Option(help="Only these, with commas; uniform is added, and oracles where arms correct."),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=V", help="A value of all scenarios, such as model.name."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Seeds (or settings) that run at the same time, each on one core.")
    ] = 1,
    publish: Annotated[
        Path | None,
        typer.Option(help="Folder for a copy of rows.csv: 10 or more judging seeds, one clean revision."),
    ] = None,
) -> None:
    """Run every arm and seed of an experiment and compare them.

    Runs that are done are kept. The same command continues after an interrupt, or adds seeds and arms.
    """
    from emulation.experiments import catalogue, changes
    from emulation.experiments import seeds as of_seeds
    from emulation.launch.errors import RunFailed

    size, console = catalogue.find_scale(scale), Console()
    count = of_seeds.parse(seeds or str(size.seeds))
    values = changes.parse(set_ or [])
    if name in PLAIN and (values or publish):
        raise InputError(f"--set, --publish: {name} has neither; allowed: the other experiments")
    folder = out or Path("experiments") / f"{name}-{scale}"
    for option, path in (("--out", folder), ("--publish", publish)):
        if path is not None and path.exists() and not path.is_dir():
            raise InputError(f"{option}: {path} is a file; allowed: a folder")
    try:
        given = Options(size, arms, count, folder, jobs, values, publish)
        if name == "forgetting":
            work = _forgetting(given, seeds)
        elif name in PLAIN:
            work = _plain(name, given)
        elif name == "allocation":
            work = _allocation(given)
        else:
            work = _arms(name, given)
        with _writing(folder):
            work(console)
    except RunFailed as error:
        typer.echo(f"unweft: {' '.join(str(error).split())}; the same command goes on from there", err=True)
        raise typer.Exit(1) from None


class Options(NamedTuple):
    """The options of the command, checked."""

    size: Scale
    arms: str
    seeds: tuple[int, ...]
    folder: Path
    jobs: int
    values: Mapping[str, object]
    publish: Path | None


def _forgetting(given: Options, runs: str | None) -> Work:
    from emulation.experiments import forgetting

    count, chosen = forgetting.parse_runs(runs), forgetting.choose_arms(given.arms)
    return partial(forgetting.run, forgetting.Request(given.size, chosen, count, given.folder, given.jobs))


def _plain(name: str, given: Options) -> Work:
    """An experiment without --set and --publish."""
    from emulation.experiments import baselines, sequence, wireless
    from emulation.experiments.request import Request

    work: Callable[..., object]
    if name == wireless.NAME:
        chosen, work = wireless.choose_arms(given.arms, given.size), wireless.run
    elif name == baselines.NAME:
        chosen, work = baselines.choose_arms(given.arms), baselines.run
    else:
        chosen, work = sequence.choose_arms(given.arms), sequence.run
    return partial(work, Request(given.size, chosen, given.seeds, given.folder, given.jobs))


def _allocation(given: Options) -> Work:
    from emulation.experiments import allocation

    size, names, seeds, folder, jobs, values, publish = given
    chosen = allocation.choose_arms(names)
    asked = allocation.Request(size, chosen, seeds, folder, jobs, values, publish)
    allocation.check(asked)
    return partial(allocation.run, asked)


def _arms(name: str, given: Options) -> Work:
    from emulation.experiments import catalogue, changes, run

    size, names, seeds, folder, jobs, values, publish = given
    found = changes.changed(catalogue.find_experiment(name), values)
    asked = run.Request(found, size, catalogue.choose_arms(found, names, size), seeds, folder, jobs, publish)
    run.check(asked)
    return partial(run.run, asked)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    interrupts.keep(f"{folder} is kept; the same command goes on from there")
    with claimed(folder, new=False):
        yield
