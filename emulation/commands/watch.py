"""`unweft watch`: a page that shows a run while it goes on, or afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from emulation.watch.optional import load_serving
from peers.errors import InputError

EXAMPLE = "Example: unweft watch runs/first"


def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run; it may have ended.")],
    host: Annotated[
        str, typer.Option(help="The address to listen at. Other machines need the token in the printed URL.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port; default: 8765, or a free one if it is taken."),
    ] = None,
) -> None:
    """Serve a page with the graph, a timeline, events and accuracies of a run, until Ctrl-C.

    The page reads the files of the run and changes nothing.
    """
    if not (folder / "scenario.toml").is_file():
        raise InputError(
            f"{folder}: holds no run (no scenario.toml); allowed: a folder that `unweft run` writes or wrote"
        )
    serving = load_serving()
    token = serving.new_token(host)
    with serving.bind(host, port) as bound:
        print_address(Console(), serving.url(bound, token))
        serving.make_server(folder, token).run(sockets=[bound])


def print_address(console: Console, address: str) -> None:
    """Say where the page is, in one line that can be copied."""
    console.print(f"watch: {address}", highlight=False, soft_wrap=True, markup=False)
