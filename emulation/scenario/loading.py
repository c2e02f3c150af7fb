"""Reading a scenario: TOML, `--set` and its relatives, validation and checks; and writing it back."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import ValidationError

from emulation.scenario import library
from emulation.scenario.checks import in_order, scenario_problems
from emulation.scenario.former_keys import current_keys, former_in_overrides, rename_in_table, warn
from emulation.scenario.schema import Scenario
from emulation.scenario.validation_errors import Place, explain
from peers.errors import InputError


class Override(NamedTuple):
    """A value that an option of the command line sets. `option`: the words of the option, for errors."""

    keys: list[str]
    value: object
    option: str


def load(
    path: Path, overrides: Sequence[str] = (), seed: int | None = None, clock: str | None = None
) -> Scenario:
    """Read a scenario file or a scenario that unweft contains, apply the overrides, and check the result.

    overrides: texts "a.b=v", where v is TOML or else plain text. An override replaces the value of the file.
    Former spellings of keys work, with a warning.
    Raises InputError with one line: the place, the key path, the value and the allowed values.
    """
    given = [_parse_override(text) for text in overrides]
    given += [Override(["seed"], seed, f"--seed {seed}")] if seed is not None else []
    given += [Override(["clock"], clock, f"--clock {clock}")] if clock is not None else []
    path = library.find(path)
    return from_table({"name": name_of(path), **read_toml(path)}, str(path), given)


def name_of(path: Path) -> str:
    """The name that a scenario file gives its scenario."""
    return re.sub(r"[^\w.-]+", "-", path.stem) or "scenario"


def from_table(
    data: dict[str, Any],
    file: str | None = None,
    given: Sequence[Override] = (),
    options: Iterable[str] = (),
) -> Scenario:
    """A checked scenario of a table, with overrides. Raises InputError with one line, as `load` does.

    `file`: the origin of the table, for errors; default: its name. `options`: key paths that `--set` may have
    set in the table already, for errors.
    """
    origin = file or str(data.get("name", "scenario"))
    applied = _apply_overrides(data, given, origin)
    place = Place(
        origin, dict.fromkeys(options, "--set") | {".".join(o.keys): o.option.split("=")[0] for o in applied}
    )
    scenario = _validated(data, place)
    for where, problem in scenario_problems(scenario):
        raise InputError(f"{place.of(where)}: {where}: {problem}")
    return scenario.model_copy(update={"event": tuple(event for _, event in in_order(scenario.event))})


def assignments(texts: Sequence[str]) -> dict[str, object]:
    """Key path -> value of texts "a.b=v" (`load`), with the current spellings of keys. Raises InputError."""
    given = [_parse_override(text) for text in texts]
    former_in_overrides(override.keys for override in given)
    return {".".join(current_keys(override.keys)): override.value for override in given}


def read(path: Path) -> Scenario:
    """Read a scenario that a run wrote. Only types and ranges are checked. Raises InputError."""
    data = read_toml(path)
    warn(str(path), rename_in_table(data, str(path)))
    return _validated(data, Place(str(path)))


def dump(scenario: Scenario) -> str:
    """The scenario as TOML. Local paths become absolute, so that `load` can read it in any folder."""
    data = scenario.model_dump(mode="json", exclude_none=True)
    for section, key in (("data", "path"), ("radio", "trace"), ("checkpoint", "resume")):
        if data[section].get(key):
            data[section][key] = str(Path(data[section][key]).expanduser().absolute())
    model = Path(data["model"]["name"]).expanduser()
    if model.exists() and data["model"]["name"] not in ("tiny", "smollm2"):
        data["model"]["name"] = str(model.absolute())
    return tomli_w.dumps(data)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises InputError if the file cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        shipped = ", ".join(library.paths())
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); allowed: a scenario in TOML, or one of {shipped}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML ({error}); allowed: a scenario in TOML") from error


def _parse_override(text: str) -> Override:
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {text}: is no assignment; allowed: a.b=value, for instance round.count=50")
    try:
        return Override(keys, tomllib.loads(f"v = {value}")["v"], f"--set {text}")
    except tomllib.TOMLDecodeError:
        return Override(keys, value.strip(), f"--set {text}")


def _apply_overrides(data: dict[str, Any], given: Sequence[Override], file: str) -> list[Override]:
    """Write the overrides into `data`; return them with the current spellings of their keys."""
    former = rename_in_table(data, file) | former_in_overrides(override.keys for override in given)
    current = [override._replace(keys=current_keys(override.keys)) for override in given]
    for override in current:
        _set(data, override)
    warn(file, former | rename_in_table(data, "--set"))
    return current


def _set(data: dict[str, Any], override: Override) -> None:
    table: Any = data
    for depth, key in enumerate(override.keys):
        if isinstance(table, list) and key.isdecimal() and int(key) < len(table):
            index: Any = int(key)
        elif isinstance(table, dict):
            index = key
        else:
            parent = ".".join(override.keys[:depth])
            raise InputError(f"{override.option}: {parent} has no {key!r}; allowed: keys of a table")
        if depth == len(override.keys) - 1:
            table[index] = override.value
        else:
            table = table.setdefault(index, {}) if isinstance(table, dict) else table[index]


def _validated(data: dict[str, Any], place: Place) -> Scenario:
    for where, number in _floats(data, ""):
        if not math.isfinite(number):
            raise InputError(f"{place.of(where)}: {where}: {number}; allowed: finite numbers")
    try:
        # In JSON, "strict" accepts a list as a tuple and accepts neither true nor "5" as a number.
        return Scenario.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise InputError(explain(Scenario, data, error, place)) from None


def _floats(value: object, where: str) -> Iterator[tuple[str, float]]:
    """All floats below a value, each with its key path."""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, float):
        yield where, value
    for key, inner in items:
        yield from _floats(inner, f"{where}.{key}" if where else str(key))
