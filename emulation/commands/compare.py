"""`unweft compare`: two or more runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peers.errors import InputError

EXAMPLE = "Example: unweft compare runs/uniform runs/dominant --plot compared.png"


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of `unweft run`, with or without --seeds.")
    ],
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the accuracies by round.")] = None,
) -> None:
    """Compare runs: results, differences to the first run, and the keys in which the scenarios differ.

    Folders of `unweft run --seeds` are compared seed by seed. In round brackets: differences to the first.
    """
    from emulation.experiments import comparison_output, run_comparison

    if len(folders) < 2:
        raise InputError(f"compare: {folders[0]} is one folder; allowed: two or more")
    if plot is not None and plot.suffix != ".png":
        raise InputError(f"--plot: {plot} is no name of a picture; allowed: a file *.png")
    subjects = [run_comparison.read(folder) for folder in folders]
    console = Console()
    console.print(comparison_output.table(subjects))
    if run_comparison.scenario_differences(subjects):
        console.print(comparison_output.differences_table(subjects))
    if plot is not None:
        comparison_output.plot(subjects, plot)
        console.print(f"picture: {plot}", highlight=False, soft_wrap=True)
