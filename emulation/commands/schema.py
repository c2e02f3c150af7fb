"""`unweft schema`: all keys of a scenario."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

EXAMPLE = "Example: unweft schema > unweft.schema.json"


def schema(
    format_: Annotated[
        Literal["json", "markdown"],
        typer.Option("--format", help="json: a JSON Schema. markdown: the page docs/scenario-keys.md."),
    ] = "json",
) -> None:
    """Print every key of a scenario: meaning, type, limits, default, unit, formula and source."""
    from emulation.scenario import reference

    page = format_ == "markdown"
    typer.echo(reference.markdown() if page else json.dumps(reference.json_schema(), indent=1), nl=not page)
