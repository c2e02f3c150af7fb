"""All keys of a scenario, as a JSON Schema and as a page of the documentation."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from emulation.scenario.schema import Scenario
from peers.section import Section

Property = dict[str, Any]
UNITS = {  # by the end of a name
    "_s": "s",
    "_m": "m",
    "_mps": "m/s",
    "_dB": "dB",
    "_dBm": "dBm",
    "_Hz": "Hz",
    "_GHz": "GHz",
    "_bps_Hz": "bit/s/Hz",
    "_bytes": "bytes",
    "_Bps": "bytes/s",
}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {"string": "text", "array": "list", "object": "table"}
WIDTH = 118
HEAD = """# Scenario keys

`unweft schema --format markdown` writes this page from the code, and a test compares the two. `unweft schema`
prints the same as a JSON Schema, which editors of TOML can use. A source `method N` is a section of
[method.md](method.md). Units are in the names of most keys.
"""


def json_schema() -> Property:
    """The JSON Schema of a scenario. A property has `unit`, `formula` and `source` where they are known."""
    schema = Scenario.model_json_schema()
    for table in [schema, *schema["$defs"].values()]:
        for name, about in table["properties"].items():
            unit = _unit_of(name)
            if unit and "unit" not in about and "$ref" not in about:
                about["unit"] = unit
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A scenario of unweft"}
    return {**schema, **head}


def _unit_of(name: str) -> str | None:
    longest = max((end for end in UNITS if name.endswith(end)), key=len, default=None)
    return UNITS[longest] if longest else None


def markdown() -> str:
    """The reference page: one heading for each table, one item for each key."""
    schema = json_schema()
    parts = [HEAD]
    for path, model in tables(Scenario):
        found = schema if model is Scenario else schema["$defs"][model.__name__]
        title = f"[{path}]" if path else "At the top"
        parts.append(f"## {f'[{title}]' if path == 'event' else title}\n\n{_about(model)}\n")
        parts += [_item(name, found["properties"][name], model) for name in keys(model)]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def tables(model: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every table of a scenario with its key path, from the top."""
    yield path, model
    for name, about in model.model_fields.items():
        inner = _section(about.annotation)
        if inner is not None:
            yield from tables(inner, f"{path}.{name}" if path else name)


def keys(model: type[Section]) -> list[str]:
    """The keys of a table that are no tables themselves."""
    return [name for name, about in model.model_fields.items() if _section(about.annotation) is None]


def _section(annotation: object) -> type[Section] | None:
    """The table, or the table of a list of tables, that an annotation means."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for found in map(_section, get_args(annotation)) if found), None)


def _about(model: type[Section]) -> str:
    text = " ".join((model.__doc__ or "").split()) if model is not Scenario else "Keys outside all tables."
    return textwrap.fill(text, WIDTH)


def _item(name: str, about: Property, model: type[Section]) -> str:
    """One key: type, limits, default, unit, meaning, formula, source."""
    facts = [describe_type(about)]
    if not model.model_fields[name].is_required():
        default = about.get("default")
        facts.append("no default" if default is None else f"default `{json.dumps(default)}`")
    facts += [about["unit"]] if "unit" in about else []
    text = f"- `{name}` ({', '.join(facts)}): {about['description']}"
    text += f" Formula: `{about['formula']}`." if "formula" in about else ""
    text += f" Source: {about['source']}." if "source" in about else ""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def describe_type(about: Property) -> str:
    """The type and the limits of a property in words, such as `number > 0`."""
    if "anyOf" in about:
        kinds = [describe_type(one) for one in about["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in about:
        return " / ".join(f"`{value}`" for value in about["enum"])
    kind = TYPES.get(about.get("type", ""), about.get("type", "value"))
    limits = " and ".join(f"{sign} {about[name]}" for name, sign in LIMITS.items() if name in about)
    if "pattern" in about:
        limits = f"like `{about['pattern']}`"
    return f"{kind} {limits}".strip()
