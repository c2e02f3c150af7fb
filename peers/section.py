"""The base class of a scenario's tables, and the description of a key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A table of a scenario. Unknown keys are errors. Values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def about(text: str, *, unit: str = "", formula: str = "", source: str = "", **limits: Any) -> Any:
    """A pydantic field with its description and limits. Give a unit only where the name has none.

    source: a section of docs/method.md, another page or module, or a publication.
    """
    extra = {"unit": unit, "formula": formula, "source": source}
    return Field(description=text, json_schema_extra={k: v for k, v in extra.items() if v}, **limits)
