"""`unweft experiment`: the runs behind a published table, all arms and seeds (docs/experiments.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from emulation.commands.output_folder import claimed
from emulation.launch import interrupts
from peers.errors import InputError

EXAMPLE = "Example: unweft experiment ablation --scale small --seeds 3 --out ablation"


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="ablation, regimes, recovery, allocation, baselines or sequence."
        ),
    ],
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Paired seeds, counted from 0; default: the scale's (10, 3, 3, 1)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, new or of this experiment; default: experiments/NAME-SCALE."),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="full, medium, compact, small, or tiny, which only tests the command.")
    ] = "full",
    arms: Annotated[
        str,
        typer.Option(help="Only these, with commas, and the references: uniform, mostly oracle too."),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Seeds (or settings) that run at the same time.")] = 1,
) -> None:
    """Run every arm and seed of an experiment and compare them.

    Runs that are done are kept. The same command continues after an interrupt, or adds seeds and arms.
    """
    from emulation.experiments import allocation, baselines, catalogue, sequence

    size = catalogue.find_scale(scale)
    folder = out or Path("experiments") / f"{name}-{scale}"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out: {folder} is a file; allowed: a folder")
    from emulation.experiments import run
    from emulation.launch.errors import RunFailed

    count, console = seeds or size.seeds, Console()
    try:
        if name == allocation.NAME:
            asked = allocation.Request(size, allocation.choose_arms(arms), count, folder, jobs)
            with _writing(folder):
                allocation.run(asked, console)
        elif name == baselines.NAME:
            compared = baselines.Request(size, baselines.choose_arms(arms), count, folder, jobs)
            with _writing(folder):
                baselines.run(compared, console)
        elif name == sequence.NAME:
            wanted = sequence.Request(size, sequence.choose_arms(arms), count, folder, jobs)
            with _writing(folder):
                sequence.run(wanted, console)
        else:
            found = catalogue.find_experiment(name)
            chosen = catalogue.choose_arms(found, arms, size)
            with _writing(folder):
                run.run(run.Request(found, size, chosen, count, folder, jobs), console)
    except RunFailed as error:
        typer.echo(f"unweft: {' '.join(str(error).split())}; the same command goes on from there", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    interrupts.keep(f"{folder} is kept; the same command goes on from there")
    with claimed(folder, new=False):
        yield
