"""`unweft run`: run a scenario and report on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer
from rich.console import Console

from emulation.commands.exit_status import FAILED, print_error
from emulation.commands.output_folder import check_usable, claimed
from emulation.commands.report import write_report, write_summary
from emulation.commands.watch import load_serving, print_address
from emulation.launch import interrupts
from emulation.launch.backend import BACKENDS
from emulation.launch.errors import RunFailed
from peers.errors import InputError

EXAMPLE = "Example: unweft run scenarios/demo.toml --set round.count=60 --seed 1 --out runs/first"


def run(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="The scenario to run.")],
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
) -> None:
    """Run a scenario: start its devices, inject its events, report the result."""
    interrupts.set_mode("exit")  # nothing is written before the folder is claimed
    from emulation.scenario.loading import load

    if on not in BACKENDS:
        raise InputError(f"--on: {on!r} is no way to launch devices; allowed: {', '.join(BACKENDS)}")
    loaded = load(scenario, set_ or (), seed, clock)
    folder = out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{loaded.name}"
    check_usable(folder)
    serving = load_serving() if watch else None
    from emulation.scenario.preflight import check_against_model

    check_against_model(loaded)
    from emulation.launch import run_loop

    console = Console()
    interrupts.set_mode("raise")
    kept = "with all records and the adapters that were exported"
    interrupts.keep(f"{folder} is kept, {kept}; its report: unweft report {folder}")
    try:
        with claimed(folder), _watched(serving, folder, console):
            run_loop.run(loaded, folder, console, on)
            status = write_report(folder, console)
    except RunFailed as error:
        write_summary(folder)
        print_error(str(error))
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        with interrupts.held():
            write_summary(folder)
        if not (folder / "scenario.toml").exists():
            interrupts.keep("")
        raise
    raise typer.Exit(status)


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
