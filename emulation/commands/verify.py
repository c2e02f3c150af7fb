"""`unweft verify`: are the receipts of deletions genuine, and does a file still hold a deleted block?"""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emulation.commands.exit_status import FAILED
from emulation.report.formatting import plural

if TYPE_CHECKING:
    from emulation.verification.verify import Verdict

EXAMPLE = "Example: unweft verify runs/first"
SHOWN = 12  # characters of a key or a hash; FILE of --json has all


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a run, or an adapter that a run exported.")
    ],
    keys: Annotated[
        Path | None,
        typer.Option(metavar="KEYS", help="A folder with an allow-list: it says whose key is whose."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="File for the whole result.")] = None,
) -> None:
    """Check the receipts of deletions offline, and search all files for blocks whose owners left.

    Needs a run with membership.receipts = true. Exit status 1: something does not hold.
    """
    from emulation.verification.verify import verify as check

    verdict = check(folder, keys)
    console = Console()
    console.print(_devices(verdict))
    console.print(_blocks(verdict))
    _print_findings(console, verdict)
    if json is not None:
        json.write_text(json_.dumps(verdict.to_dict(), indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(0 if verdict.holds else FAILED)


def _devices(verdict: Verdict) -> Table:
    table = Table("device", "receipts", "deletions", "key", "last line", "verdict")
    for row in verdict.devices:
        said = plural(row.faults, "finding") if row.faults else "holds"
        counts = str(row.receipts), str(row.deletions)
        table.add_row(escape(row.device), *counts, row.key[:SHOWN], row.head[:SHOWN], said)
    return table


def _blocks(verdict: Verdict) -> Table:
    table = Table("deleted block", "reason", "deleted by", "confirmed by", "still held by")
    for row in verdict.blocks:
        cells = (", ".join(names) or "–" for names in (row.deleted_by, row.confirmed_by))
        table.add_row(row.block, row.reason, *cells, escape(", ".join(row.held_by)) or "nothing")
    return table


def _print_findings(console: Console, verdict: Verdict) -> None:
    for note in verdict.findings.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    for fault in verdict.findings.faults:
        console.print(f"finding: {fault}", highlight=False, soft_wrap=True, markup=False)
    if verdict.holds:
        console.print("All receipts hold, and no file holds a block whose owner left.", highlight=False)
