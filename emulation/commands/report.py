"""`unweft report`: summary, report and pictures of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from emulation.commands.exit_status import FAILED, print_error
from peers.errors import InputError

EXAMPLE = "Example: unweft report runs/first"


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `unweft run` wrote.")],
) -> None:
    """Write DIR/report.html, one page with all results, and bring DIR/summary.json up to date."""
    raise typer.Exit(write_report(folder, Console()))


def write_report(folder: Path, console: Console) -> int:
    """Write summary, report and pictures of a run; print the result and the report's path.

    If the run has ended, forgotten blocks are deleted from its files first. Returns the exit status: FAILED
    if no two devices ever met, or if a file of a run that has ended still holds a forgotten block. Raises
    InputError if the folder holds no run.
    """
    from emulation.analysis import forgotten_files, summary, trace
    from emulation.report import html, text
    from emulation.testbed import reconstruction

    reconstruction.complete(folder)
    ended = reconstruction.has_ended(folder)
    if ended:
        forgotten_files.correct(folder)
    found = summary.write(folder)
    console.print(text.table(found))
    for sentence in text.sentences(found):
        console.print(f"• {sentence}", highlight=False, soft_wrap=True, markup=False)
    page = html.write(folder)  # it takes seconds, and all else is there without it
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    console.print(f"timeline: {trace.write(folder)}; {trace.OPEN}", highlight=False, soft_wrap=True)
    return _status(found, ended, folder)


def _status(summary: dict[str, Any], ended: bool, folder: Path) -> int:
    from emulation.analysis.unmet import nobody_met

    if nobody_met(summary["unmet"]):
        print_error("no two devices ever met; the logs of the devices and their network may tell why")
        return FAILED
    holding = summary["forgotten"]["holding"]
    if not ended or not holding:
        return 0
    print_error(f"{folder}: a forgotten block is in {', '.join(holding)}, which could not be corrected")
    return FAILED


def write_summary(folder: Path) -> None:
    """Write the summary of a run that failed or was interrupted, from what is there, if anything is."""
    from emulation.analysis import summary

    with suppress(InputError, OSError):
        summary.write(folder)
