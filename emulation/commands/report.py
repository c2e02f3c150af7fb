"""`unweft report`: summary, report and pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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
    page = html.write(folder)
    console.print(text.table(found))
    for sentence in text.sentences(found):
        console.print(f"• {sentence}", highlight=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return found
