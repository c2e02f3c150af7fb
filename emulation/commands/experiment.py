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

EXAMPLE = "Example: unweft experiment ablation --scale compact --seeds 0-2 --jobs 2 --out ablation"


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="ablation, regimes, recovery, allocation, wireless or forgetting."
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
        typer.Option(help="Only these, with commas; uniform and oracles are added where arms correct."),
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
    from emulation.experiments import allocation, catalogue, changes, forgetting, wireless
    from emulation.experiments import seeds as of_seeds

    size, console = catalogue.find_scale(scale), Console()
    count = of_seeds.parse(seeds or str(size.seeds))
    values = changes.parse(set_ or [])
    if name in (forgetting.NAME, wireless.NAME) and (values or publish):
        raise InputError(f"--set, --publish: {name} has neither; allowed: the other experiments")
    folder = out or Path("experiments") / f"{name}-{scale}"
    for option, path in (("--out", folder), ("--publish", publish)):
        if path is not None and path.exists() and not path.is_dir():
            raise InputError(f"{option}: {path} is a file; allowed: a folder")
    from emulation.experiments import run
    from emulation.launch.errors import RunFailed

    try:
        if name == forgetting.NAME:
            runs = forgetting.parse_runs(seeds)
            attacked = forgetting.Request(size, forgetting.choose_arms(arms), runs, folder, jobs)
            with _writing(folder):
                forgetting.run(attacked, console)
        elif name == wireless.NAME:
            limited = wireless.Request(size, wireless.choose_arms(arms, size), count, folder, jobs)
            with _writing(folder):
                wireless.run(limited, console)
        elif name == allocation.NAME:
            chosen = allocation.choose_arms(arms)
            allocators = allocation.Request(size, chosen, count, folder, jobs, values, publish)
            allocation.check(allocators)
            with _writing(folder):
                allocation.run(allocators, console)
        else:
            found = changes.changed(catalogue.find_experiment(name), values)
            asked = run.Request(
                found, size, catalogue.choose_arms(found, arms, size), count, folder, jobs, publish
            )
            run.check(asked)
            with _writing(folder):
                run.run(asked, console)
    except RunFailed as error:
        typer.echo(f"unweft: {' '.join(str(error).split())}; the same command goes on from there", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    interrupts.keep(f"{folder} is kept; the same command goes on from there")
    with claimed(folder, new=False):
        yield
