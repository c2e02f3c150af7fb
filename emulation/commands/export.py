"""`unweft export`: the records of a run as CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EXAMPLE = "Example: unweft export runs/first --format parquet"


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `unweft run` wrote.")],
    format_: Annotated[
        Literal["csv", "parquet"], typer.Option("--format", help="Format of the files.")
    ] = "csv",
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; default: DIR/tables.")] = None,
) -> None:
    """Write the tables of a run: devices, rounds, links, events, accuracy."""
    from emulation.analysis import tables

    for path in tables.write(folder, out or tables.folder_of(folder), format_):
        typer.echo(str(path))
