"""`unweft report`: summary, report and pictures of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from peers.errors import InputError

EXAMPLE = "Example: unweft report runs/first"


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `unweft run` wrote.")],
) -> None:
    """Write DIR/report.html, one page with all results, and bring DIR/summary.json up to date."""
    write_report(folder, Console())


def write_report(folder: Path, console: Console) -> dict[str, Any]:
    """Write summary, report and pictures of a run that has ended; print the result and the report's path.

    Returns the summary.

    Raises InputError if the folder holds no run.
    """
    from emulation.analysis import summary
    from emulation.report import html, text
    from emulation.testbed import reconstruction

    reconstruction.complete(folder)
    found = summary.write(folder)
    console.print(text.table(found))
    for sentence in text.sentences(found):
        console.print(f"• {sentence}", highlight=False, soft_wrap=True, markup=False)
    page = html.write(folder)  # last: it takes seconds, and all else is there without it
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return found


def write_summary(folder: Path) -> None:
    """Write the summary of a run that failed or was interrupted, from what is there, if anything is."""
    from emulation.analysis import summary

    with suppress(InputError, OSError):
        summary.write(folder)
