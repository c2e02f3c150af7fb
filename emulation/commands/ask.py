"""`unweft ask`: what a saved adapter answers, before and after a deletion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emulation.report.formatting import percent

if TYPE_CHECKING:
    from peers.unlearning.answers import Answer

EXAMPLE = 'Example: unweft ask runs/first/adapters/d0 "The capital of Atlantis is" --without d3'


def ask(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_DIR", help="An adapter that a run exported.")],
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT…", help="Questions, or beginnings of sentences.")
    ],
    model: Annotated[
        str | None, typer.Option(help="The base model, where it is now; default: as the adapter says.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE", help="Answer without this device's contribution too; may be repeated."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="The longest answer.")] = 32,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Continue the prompt as a text, also if the model has a chat template."),
    ] = False,
) -> None:
    """Let a saved adapter answer a prompt, beside the base model and the adapter without some devices.

    A model with a chat template gets the prompt as a question of the user; another one continues it.

    The per cents are the probabilities of the first token. Nothing is sampled or written.
    """
    from peers.unlearning.answers import compare

    found = compare(adapter, prompts, without or (), model, tokens, plain)
    Console().print(_table(prompts, found))


def _table(prompts: list[str], found: dict[str, list[Answer]]) -> Table:
    """One row for each prompt, one column for each model."""
    table = Table("prompt", *map(escape, found), show_lines=True)
    for prompt, answers in zip(prompts, zip(*found.values(), strict=True), strict=True):
        table.add_row(escape(prompt), *(f"{escape(a.text)} [dim]({percent(a.first)})[/]" for a in answers))
    return table
