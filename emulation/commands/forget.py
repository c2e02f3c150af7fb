"""`unweft forget`: delete a device's contribution from a saved adapter."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from emulation.commands.output_folder import check_usable

EXAMPLE = "Example: unweft forget runs/first/adapters/d0 --device d3 --out without-d3"


def forget(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_DIR", help="An adapter that a run exported.")],
    device_id: Annotated[str, typer.Option("--device", help="The device whose contribution is deleted.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter without it; new or empty.")],
) -> None:
    """Delete one device's contribution from a saved adapter. Needs no training data and no run."""
    from peers.unlearning.forget import forget as delete

    check_usable(out)
    console = Console()
    console.print(_table(f"{device_id} is deleted", delete(adapter, device_id, out)))
    console.print(f"adapter: {out}", highlight=False, soft_wrap=True)


def _table(title: str, receipt: object) -> Table:
    """The receipt of a deletion, one row for each field."""
    fields = asdict(receipt) if is_dataclass(receipt) and not isinstance(receipt, type) else {}
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), str(value))
    return table
