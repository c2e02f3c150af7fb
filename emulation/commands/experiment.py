"""`unweft experiment`: the runs behind a published table, all arms and seeds (docs/experiments.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from emulation.commands.output_folder import claimed
from emulation.launch import interrupts
from peers.errors import InputError

if TYPE_CHECKING:
    from emulation.experiments.request import Request

Work = Callable[[Console], object]
EXAMPLE = "Example: unweft experiment ablation --scale compact --seeds 0-2 --jobs 2 --out ablation"


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="ablation, paper, regimes, joins, recovery, allocation, wireless, forgetting, privacy, "
            "baselines, sequence or pricing.",
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
        typer.Option(
            help="Only these arms (docs/experiments.md: or settings), with commas; uniform is added, and "
            "oracles where arms correct."
        ),
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
    from emulation.experiments.request import Request
    from emulation.launch.errors import RunFailed

    size, console = catalogue.find_scale(scale), Console()
    count = of_seeds.parse(seeds or str(size.seeds))
    folder = out or Path("experiments") / f"{name}-{scale}"
    for option, path in (("--out", folder), ("--publish", publish)):
        if path is not None and path.exists() and not path.is_dir():
            raise InputError(f"{option}: {path} is a file; allowed: a folder")
    try:
        work = _checked(
            name, Request(size, (), count, folder, jobs, changes.parse(set_ or []), publish), arms, seeds
        )
        with _writing(folder):
            work(console)
    except RunFailed as error:
        typer.echo(f"unweft: {' '.join(str(error).split())}; the same command goes on from there", err=True)
        raise typer.Exit(1) from None


def _checked(name: str, request: Request, arms: str, seeds: str | None) -> Work:
    """The run of an experiment. Raises InputError for options that do not fit it."""
    from emulation.experiments import (  # the arms of some depend on the scale
        allocation,
        catalogue,
        changes,
        forgetting,
        pricing,
        privacy,
        run,
        sequence,
        wireless,
    )

    sized = {module.NAME: module for module in (pricing, wireless)}
    others = {module.NAME: module for module in (allocation, forgetting, privacy, sequence)}
    own = others.get(name) or sized.get(name)
    if own is None:
        listed = catalogue.choose_settings(catalogue.find_experiment(name), arms)
        found = changes.changed(listed, request.changes)
        chosen = catalogue.choose_arms(found, arms, request.scale)
        request = replace(request, arms=chosen, scale=found.sized(request.scale))
        run.check(found, request)
        return partial(run.run, found, request)
    chosen = sized[name].choose_arms(arms, request.scale) if name in sized else own.choose_arms(arms)
    request = replace(request, arms=chosen)
    if own is forgetting or own is privacy:
        request = replace(request, seeds=forgetting.parse_runs(seeds))
    own.check(request)
    return partial(own.run, request)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    interrupts.keep(f"{folder} is kept; the same command goes on from there")
    with claimed(folder, new=False):
        yield
