"""`unweft experiment`: the runs behind a published table, all arms and seeds (docs/experiments.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
        if name in PLAIN:
            work = _plain(name, size, arms, count, seeds, folder, jobs)
        elif name == "allocation":
            work = _allocation(size, arms, count, folder, jobs, values, publish)
        else:
            work = _arms(name, size, arms, count, folder, jobs, values, publish)
        with _writing(folder):
            work(console)
    except RunFailed as error:
        typer.echo(f"unweft: {' '.join(str(error).split())}; the same command goes on from there", err=True)
        raise typer.Exit(1) from None


def _plain(
    name: str, size: Scale, arms: str, count: tuple[int, ...], seeds: str | None, folder: Path, jobs: int
) -> Work:
    """An experiment without --set and --publish."""
    from emulation.experiments import baselines, forgetting, sequence, wireless

    if name == forgetting.NAME:
        runs = forgetting.parse_runs(seeds)
        attacked = forgetting.Request(size, forgetting.choose_arms(arms), runs, folder, jobs)
        return partial(forgetting.run, attacked)
    if name == wireless.NAME:
        limited = wireless.Request(size, wireless.choose_arms(arms, size), count, folder, jobs)
        return partial(wireless.run, limited)
    if name == baselines.NAME:
        compared = baselines.Request(size, baselines.choose_arms(arms), count, folder, jobs)
        return partial(baselines.run, compared)
    wanted = sequence.Request(size, sequence.choose_arms(arms), count, folder, jobs)
    return partial(sequence.run, wanted)


def _allocation(
    size: Scale,
    arms: str,
    count: tuple[int, ...],
    folder: Path,
    jobs: int,
    values: Mapping[str, object],
    publish: Path | None,
) -> Work:
    from emulation.experiments import allocation

    asked = allocation.Request(size, allocation.choose_arms(arms), count, folder, jobs, values, publish)
    allocation.check(asked)
    return partial(allocation.run, asked)


def _arms(
    name: str,
    size: Scale,
    arms: str,
    count: tuple[int, ...],
    folder: Path,
    jobs: int,
    values: Mapping[str, object],
    publish: Path | None,
) -> Work:
    from emulation.experiments import catalogue, changes, run

    found = changes.changed(catalogue.find_experiment(name), values)
    chosen = catalogue.choose_arms(found, arms, size)
    asked = run.Request(found, size, chosen, count, folder, jobs, publish)
    run.check(asked)
    return partial(run.run, asked)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    interrupts.keep(f"{folder} is kept; the same command goes on from there")
    with claimed(folder, new=False):
        yield
