"""Turns the errors of pydantic into one line for the author of a scenario."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class Place:
    """The origin of key paths: the file, or the option of the command line that set the key."""

    file: str
    options: Mapping[str, str] = field(default_factory=dict)

    def of(self, where: str) -> str:
        """The name of the file, or the option if an option set the key or a table around it."""
        for key, option in self.options.items():
            if where == key or where.startswith(f"{key}."):
                return option.split()[0]
        return self.file


def explain(model: type[BaseModel], data: dict[str, Any], error: ValidationError, place: Place) -> str:
    """The first problem: place, key path, value, allowed values. An unknown key comes with a suggestion."""
    found = [
        (_path(data, details["loc"], details["type"] == "missing"), details) for details in error.errors()
    ]
    first = found[0][0]
    same = [(path, details) for path, details in found if path[:1] == first[:1]]
    unknown = [path for path, details in same if details["type"] == "extra_forbidden"]
    path = unknown[0] if unknown else max((path for path, _ in same), key=len)
    where = ".".join(map(str, path))
    head = f"{place.of(where)}: {where}"
    if unknown:
        return f"{head}: unknown key; {_suggest(str(path[-1]), _keys(model, path[:-1]))}"
    here = [details for other, details in same if other == path]
    if here[0]["type"] == "missing":
        return f"{head}: is missing; allowed: {', '.join(_keys(model, path[:-1]))}"
    allowed = " or ".join(dict.fromkeys(_allowed(details["msg"]) for details in here))
    return f"{head}: {_shown(_value(data, path))} is not allowed; allowed: {allowed}"


def _path(data: object, loc: Loc, missing: bool) -> Loc:
    """The location as keys of the data. Names of union members, which pydantic inserts, are left out."""
    path: list[int | str] = []
    for part in loc:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            path.append(part)
            data = data[part]  # type: ignore[index]
    return (*path, loc[-1]) if missing else tuple(path)


def _value(data: Any, path: Loc) -> object:
    for part in path:
        data = data[part]
    return data


def _keys(model: type[BaseModel], path: Loc) -> list[str]:
    """The known keys of the table at `path`."""
    for part in path:
        if isinstance(part, str):
            model = _table(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _table(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_table, get_args(annotation)) if found), None)


def _suggest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(known)}"


def _allowed(message: str) -> str:
    for start in ("Input should be ", "String ", "Value error, "):
        message = message.removeprefix(start)
    message = message.replace("a valid dictionary", "a table").replace("an object", "a table")
    message = message.replace("should match pattern", "text that matches").replace("a valid array", "a list")
    return message.split(", unable")[0].split(", got")[0]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
