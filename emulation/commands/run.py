"""`unweft run`: run a scenario and report on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from emulation.commands.exit_status import FAILED, print_error
from emulation.commands.output_folder import check_usable, claimed
from emulation.commands.report import write_report, write_summary
from emulation.commands.watch import print_address
from emulation.launch import interrupts
from emulation.launch.backend import BACKENDS
from emulation.launch.errors import RunFailed
from emulation.scenario import library
from emulation.watch.optional import load_serving
from peers.errors import InputError

if TYPE_CHECKING:
    from emulation.launch.start import Start
    from emulation.scenario.schema import Scenario

EXAMPLE = "Example: unweft run scenarios/demo.toml --set round.count=60 --seed 1 --out runs/first"


def completed(incomplete: str) -> list[str]:
    """The scenarios, files and folders that begin with a text."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    shown = [f"{path}/" if path.is_dir() else str(path) for path in found]
    names = [*library.paths(), *(path for path in shown if path.endswith(("/", ".toml")))]
    return [name for name in names if name.startswith(incomplete)]


def run(
    scenario: Annotated[
        Path | None,
        typer.Argument(
            metavar="SCENARIO", help="A file, or a name of `unweft list scenarios`.", autocompletion=completed
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for all files of the run; default: runs/<time>-<scenario>."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=V", help="Replaces a value of the scenario; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the scenario's seed.")] = None,
    clock: Annotated[
        Literal["real", "virtual"] | None, typer.Option(help="Replaces the scenario's clock.")
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            metavar=f"<{'|'.join(BACKENDS)}>",
            help="; ".join(f"{name}: {entry.help}" for name, entry in BACKENDS.items()) + ".",
        ),
    ] = "local",
    watch: Annotated[bool, typer.Option("--watch", help="Also serves a page that shows the run.")] = False,
    track: Annotated[
        str | None,
        typer.Option(help="Tell a tracker while the run goes on: wandb, trackio, tensorboard or mlflow."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, help="Run this many seeds, from the scenario's on, into folders OUT/seed-N."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the scenario and print an estimate; start nothing.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the interrupted run in DIR, instead of a new SCENARIO."),
    ] = None,
) -> None:
    """Run a scenario: start its devices, inject its events, report the result."""
    interrupts.set_mode("exit")  # nothing is written before the folder is claimed
    from emulation.scenario.loading import load

    if on not in BACKENDS:
        raise InputError(f"--on: {on!r} is no way to launch devices; allowed: {', '.join(BACKENDS)}")
    if track is not None:
        from emulation.report import trackers

        trackers.check(track)
    if resume is not None:
        _refuse_others(scenario, out, set_, seed, clock, seeds, dry_run or None)
        raise typer.Exit(_go_on(resume, on, Console(), track, load_serving() if watch else None))
    if scenario is None:
        raise InputError(
            "SCENARIO: missing; allowed: a file, a name of `unweft list scenarios`, or --resume DIR instead"
        )
    given = load(scenario, set_ or (), seed, clock)
    loaded = _on(on, given)
    folder = out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{loaded.name}"
    check_usable(folder)
    serving = load_serving() if watch else None
    from emulation.scenario import probe_period
    from emulation.scenario.preflight import check_against_model, say

    if loaded is not given:
        say(probe_period.note(loaded, given, probe_period.cores()))
    learner, console = check_against_model(loaded), Console()
    if dry_run:
        from emulation.report.estimate_table import table
        from emulation.scenario import estimate

        console.print(table(loaded, estimate.make(loaded, learner)))
        return
    del learner
    try:
        if seeds is not None:
            numbers = range(loaded.seed, loaded.seed + seeds)
            runs = {number: _on(on, load(scenario, set_ or (), number, clock)) for number in numbers}
            raise typer.Exit(_run_seeds(runs, folder, on, console, track, serving))
        raise typer.Exit(execute(loaded, folder, on, console, track, serving))
    except RunFailed as error:
        print_error(str(error))
        raise typer.Exit(FAILED) from None


def _on(backend: str, scenario: Scenario) -> Scenario:
    """The scenario as this machine can run it, if the devices share it."""
    from emulation.scenario import probe_period

    return probe_period.fitted(scenario, probe_period.cores()) if backend == "local" else scenario


def _refuse_others(*given: object) -> None:
    """Raises InputError for what says how a new run is to be."""
    names = ("SCENARIO", "--out", "--set", "--seed", "--clock", "--seeds", "--dry-run")
    wrong = [name for name, value in zip(names, given, strict=True) if value not in (None, [])]
    if wrong:
        raise InputError(
            f"--resume: goes on with the run as it is, so {wrong[0]} does not fit; "
            "allowed: --on, --watch, --track"
        )


def _go_on(folder: Path, on: str, console: Console, track: str | None, serving: ModuleType | None) -> int:
    """Go on with an interrupted run; returns the exit status."""
    from emulation.launch import resume

    if on != "local":
        raise InputError(f"--resume: does not work with --on {on}; allowed: --on local")
    try:
        scenario = resume.scenario_of(folder)
        return execute(scenario, folder, on, console, track, serving, goes_on=True)
    except RunFailed as error:
        print_error(str(error))
        return FAILED


def _run_seeds(
    runs: Mapping[int, Scenario],
    folder: Path,
    on: str,
    console: Console,
    track: str | None,
    serving: ModuleType | None,
) -> int:
    """Run one scenario of each seed, one after the other; returns the highest exit status."""
    from emulation.experiments import comparison_output, run_comparison

    status = 0
    for number, (seed, one) in enumerate(runs.items(), start=1):
        console.print(f"seed {seed}, {number} of {len(runs)}", highlight=False)
        own = run_comparison.seed_folder(folder, seed)
        status = max(status, execute(one, own, on, console, track, serving))
    subject = run_comparison.read(folder)
    run_comparison.write_seeds(folder, subject)
    console.print(comparison_output.table([subject]))
    console.print(f"values by seed: {folder / run_comparison.SEEDS_FILE}", highlight=False, soft_wrap=True)
    return status


def execute(
    loaded: Scenario,
    folder: Path,
    on: str,
    console: Console,
    track: str | None = None,
    serving: ModuleType | None = None,
    goes_on: bool = False,
) -> int:
    """Run a checked scenario and report on it; returns the exit status.

    `serving`: the module that serves the page of the run; None: no page. `goes_on`: the folder holds the run,
    which was interrupted.

    Raises InputError if the run cannot go on, and RunFailed. After that and after a KeyboardInterrupt the
    summary is written.
    """
    from emulation.analysis import forgotten_files
    from emulation.launch import run_loop

    if loaded.checkpoint.resume is not None:  # a run that was killed could not correct its files
        forgotten_files.correct(Path(loaded.checkpoint.resume).expanduser())
    interrupts.set_mode("raise")
    option = "--resume" if goes_on else "--out"
    try:
        with claimed(folder, new=not goes_on, option=option):
            interrupts.keep(_kept(folder, on))
            continues = _continued(loaded, folder, console) if goes_on else None
            with _watched(serving, folder, console):
                run_loop.run(loaded, folder, console, on, track, continues)
                return write_report(folder, console)
    except RunFailed:
        write_summary(folder)
        raise
    except KeyboardInterrupt:
        with interrupts.held():
            write_summary(folder)
        if not (folder / "scenario.toml").exists():
            interrupts.keep("")
        raise


def _kept(folder: Path, on: str) -> str:
    """What an interrupt leaves, and what the user can do with it."""
    kept = f"{folder} is kept, with all records and the adapters that were exported"
    more = f"; to go on: unweft run --resume {folder}" if on == "local" else ""
    return f"{kept}; its report: unweft report {folder}{more}"


def _continued(loaded: Scenario, folder: Path, console: Console) -> Start:
    """Plan how an interrupted run goes on, and make its files ready. Raises InputError."""
    from emulation.launch import resume
    from emulation.scenario.preflight import check_against_model

    resume.wait_for_end(folder)
    start = resume.plan(folder)
    check_against_model(loaded)
    resume.prepare(folder, loaded, start)
    first, last = start.first_round, loaded.round.count - 1
    shown = f"going on with rounds {first} to {last}: devices {', '.join(start.devices)}"
    events = f"{len(start.done)} events are done, {len(start.events)} are left"
    console.print(f"{shown}; {events}", highlight=False, soft_wrap=True)
    return start


@contextmanager
def _watched(serving: ModuleType | None, folder: Path, console: Console) -> Iterator[None]:
    """Serve the page of the run while it goes on, if that is wanted."""
    if serving is None:
        yield
        return
    with serving.beside(folder) as address:
        print_address(console, address)
        yield
    print_address(console, f"the page has ended; again: unweft watch {folder}")
