"""A scenario: what devices read (`peers.config`) and what only the testbed needs; from TOML and back."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, ValidationError

from emulation.radio.wireless import channel
from emulation.scenario.events import (
    DEVICE_ID,
    ChurnConfig,
    EventConfig,
    Population,
    churn,
    names,
    problems,
)
from emulation.scenario.former_keys import current_keys, former_in_overrides, rename_in_table, warn
from emulation.scenario.validation_errors import Place, explain
from peers.config import FIFO, DeviceConfig, MobilityConfig, RadioConfig, Section, WirelessConfig
from peers.errors import InputError


class DevicesConfig(Section):
    """Who starts: `prefix` and a number from 0 on."""

    count: Annotated[int, Field(ge=1)] = 6
    prefix: Annotated[str, Field(pattern=DEVICE_ID)] = "d"


class EvalConfig(Section):
    """How often the harness looks at what the devices know."""

    every: Annotated[int, Field(ge=0)] = 5  # rounds between two snapshots of a device; 0: none, no accuracies


class Scenario(DeviceConfig):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "scenario"  # default: the file's name
    devices: DevicesConfig = DevicesConfig()
    eval: EvalConfig = EvalConfig()
    event: tuple[EventConfig, ...] = ()
    churn: ChurnConfig = ChurnConfig()

    @property
    def initial_devices(self) -> tuple[str, ...]:
        """Devices that start together."""
        return tuple(f"{self.devices.prefix}{i}" for i in range(self.devices.count))

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The initial devices, then those that join, each once."""
        joiners = (event.device for event in self.events if event.kind == "join" and event.device)
        return tuple(dict.fromkeys([*self.initial_devices, *joiners]))

    @cached_property
    def events(self) -> tuple[EventConfig, ...]:
        """All that happens, listed or drawn, in order."""
        listed, config = list(self.event), self.churn
        if config.rate:
            population, slots = Population(self.initial_devices, self.on_crash), self.adapter.max_devices
            listed += churn(config, self.seed, self.round.count, slots, population, listed)
        return tuple(sorted(listed, key=lambda event: event.round))

    def in_time(self, pending: Iterable[EventConfig], rounds: Mapping[str, int]) -> list[EventConfig]:
        """Without the random ones that are late: in everybody's last rounds nobody could recover from them.

        rounds: the last round of each device that is there. They end half-way from churn.stop to the end.
        """
        end = (self.churn.last_round(self.round.count) + self.round.count) / 2
        late = max(rounds.values(), default=0) > end
        return [event for event in pending if not late or event in self.event]

    def device_config(self) -> DeviceConfig:
        """The part that every device is given."""
        return DeviceConfig(**{name: getattr(self, name) for name in DeviceConfig.model_fields})


def load(
    path: Path, overrides: Sequence[str] = (), seed: int | None = None, clock: str | None = None
) -> Scenario:
    """The scenario of a file with `overrides` ("a.b=v", v as TOML or else text) put over it, checked.

    Former spellings of keys work, with a warning. An override replaces the file's value in either spelling.
    Raises InputError, one line: where, key path, value, what is allowed.
    """
    given = [_parse_override(text) for text in overrides]
    given += [(["seed"], seed, f"--seed {seed}")] if seed is not None else []
    given += [(["clock"], clock, f"--clock {clock}")] if clock is not None else []
    data = read_toml(path)
    former = rename_in_table(data, str(path)) | former_in_overrides(keys for keys, _, _ in given)
    given = [(current_keys(keys), value, text) for keys, value, text in given]
    for keys, value, text in given:
        _put(data, keys, value, text)
    warn(str(path), former | rename_in_table(data, "--set"))
    place = Place(str(path), {".".join(keys): text.split("=")[0] for keys, _, text in given})
    data.setdefault("name", re.sub(r"[^\w.-]+", "-", path.stem) or "scenario")
    scenario = _validated(data, place)
    for where, problem in _problems(scenario):
        raise InputError(f"{place.of(where)}: {where}: {problem}")
    return scenario.model_copy(update={"event": tuple(event for _, event in _in_order(scenario.event))})


def read(path: Path) -> Scenario:
    """The scenario that a run wrote: not checked against anything but its own form. Raises InputError."""
    data = read_toml(path)
    warn(str(path), rename_in_table(data, str(path)))
    return _validated(data, Place(str(path)))


def dump(scenario: Scenario) -> str:
    """The scenario as TOML that `load` reads from any folder: local paths are made absolute."""
    data = scenario.model_dump(mode="json", exclude_none=True)
    for section, key in (("data", "path"), ("radio", "trace"), ("checkpoint", "resume")):
        if data[section].get(key):
            data[section][key] = str(Path(data[section][key]).expanduser().absolute())
    model = Path(data["model"]["name"]).expanduser()
    if model.is_dir() and data["model"]["name"] != "tiny":
        data["model"]["name"] = str(model.absolute())
    return tomli_w.dumps(data)


def read_toml(path: Path) -> dict[str, Any]:
    """A file's table. Raises InputError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); allowed: a scenario in TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML ({error}); allowed: a scenario in TOML") from error


def check_device(device: str) -> None:
    """Raises InputError for what cannot be a device's id."""
    if not re.match(DEVICE_ID, device):
        raise InputError(
            f"--id: {device!r} is no device id; allowed: a letter, then letters, digits, - and _"
        )


def _parse_override(text: str) -> tuple[list[str], Any, str]:
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {text}: is no assignment; allowed: a.b=value, for instance round.count=50")
    try:
        return keys, tomllib.loads(f"v = {value}")["v"], f"--set {text}"
    except tomllib.TOMLDecodeError:
        return keys, value.strip(), f"--set {text}"


def _put(data: dict[str, Any], keys: list[str], value: object, text: str) -> None:
    table: Any = data
    for depth, key in enumerate(keys):
        if isinstance(table, list) and key.isdecimal() and int(key) < len(table):
            index: Any = int(key)
        elif isinstance(table, dict):
            index = key
        else:
            raise InputError(f"{text}: {'.'.join(keys[:depth])} has no {key!r}; allowed: keys of a table")
        if depth == len(keys) - 1:
            table[index] = value
        else:
            table = table.setdefault(index, {}) if isinstance(table, dict) else table[index]


def _validated(data: dict[str, Any], place: Place) -> Scenario:
    for where, number in _numbers(data, ""):
        if not math.isfinite(number):
            raise InputError(f"{place.of(where)}: {where}: {number}; allowed: finite numbers")
    try:
        # Through JSON, where "strict" takes lists for tuples but neither true nor "5" for a number.
        return Scenario.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise InputError(explain(Scenario, data, error, place)) from None


def _numbers(value: object, where: str) -> Iterator[tuple[str, float]]:
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, float):
        yield where, value
    for key, inner in items:
        yield from _numbers(inner, f"{where}.{key}" if where else str(key))


def _problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """What is wrong with a scenario whose form is right: (key path, value and what is allowed)."""
    yield from _unavailable(scenario)
    if scenario.mixing.mode == "newest" and scenario.isolation.leak > 0:
        yield (
            "isolation.leak",
            f"{scenario.isolation.leak} with mixing.mode = 'newest', in which a block has one writer; "
            "allowed: 0, or mixing.mode = 'average'",
        )
    if scenario.correction.refit and scenario.mixing.mode == "paper-literal":
        yield (
            "correction.refit",
            f"{scenario.correction.refit} with mixing.mode = 'paper-literal', which has no foreign blocks "
            "in the model; allowed: 0, or another mode",
        )
    if scenario.correction.fisher and scenario.correction.policy == "lookahead":
        yield (
            "correction.fisher",
            "true with correction.policy = 'lookahead', whose trials would move the optimiser's moments; "
            "allowed: false, or another policy",
        )
    if scenario.isolation.leak and scenario.correction.policy == "lookahead":
        yield (
            "correction.policy",
            f"'lookahead' with isolation.leak = {scenario.isolation.leak}: a trial would move other devices' "
            "blocks; allowed: isolation.leak = 0, or another policy",
        )
    yield from _radio_problems(scenario)
    yield from _allocator_problems(scenario)
    yield from _event_problems(scenario)
    yield from _checkpoint_problems(scenario)


def _unavailable(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Names that no registry knows, and what later versions will add."""
    from coordinator_free.averaging.mixing import MODES
    from coordinator_free.averaging.rate_allocation import ALLOCATORS
    from coordinator_free.averaging.topology import TOPOLOGIES
    from coordinator_free.correction.policies import POLICIES, SCHEDULES
    from peers import plugins

    plugins.load(scenario.plugins)
    for where, name, known in (
        ("mixing.mode", scenario.mixing.mode, MODES),
        ("topology.kind", scenario.topology.kind, TOPOLOGIES),
        ("correction.policy", scenario.correction.policy, {*POLICIES, *SCHEDULES}),
        ("radio.allocator", scenario.radio.allocator, {FIFO, *ALLOCATORS}),
    ):
        if name not in known:
            yield where, f"{name!r} is not available; allowed: {', '.join(sorted(known))}"


def _radio_problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """What does not go with `radio.kind`, places outside the area, a trace that cannot be replayed."""
    radio = scenario.radio
    for table, kind, given in (
        ("trace", "trace", radio.trace is not None),
        ("wireless", "wireless", radio.wireless != WirelessConfig()),
        ("mobility", "wireless", radio.mobility != MobilityConfig()),
    ):
        if given and radio.kind != kind:
            yield f"radio.{table}", f"has no meaning with radio.kind = {radio.kind!r}; allowed: with {kind!r}"
    if radio.kind == "trace" and radio.trace is None:
        yield "radio.trace", "is missing; allowed: a CSV file, which radio.kind = 'trace' replays"
    for device, place in radio.wireless.positions.items():
        where, side = f"radio.wireless.positions.{device}", radio.wireless.area_m
        if device not in scenario.all_devices:
            yield where, f"is no device of the run; allowed: {names(scenario.all_devices)}"
        if not all(0 <= metres <= side for metres in place):
            yield where, f"{list(place)} is outside the area; allowed: 0 to {side}, radio.wireless.area_m"
    try:
        channel(scenario, scenario.all_devices)
    except InputError as error:
        yield "radio.trace", str(error)


def _allocator_problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """An allocator compares copies of one block and picks a codec for each neighbour. In `newest` a version
    is signed by its owner in one codec, and `paper-literal` averages different blocks."""
    from coordinator_free.averaging.mixing import MODES

    radio, mode = scenario.radio, scenario.mixing.mode
    if radio.allocator == FIFO:
        if radio.codecs != RadioConfig().codecs:
            yield "radio.codecs", f"has no meaning with radio.allocator = {FIFO!r}, which sends radio.codec"
        return
    made = MODES[mode]() if mode in MODES else None
    if made is not None and (made.shared_versions or made.foreign_basis):
        yield (
            "radio.allocator",
            f"{radio.allocator!r} with mixing.mode = {mode!r}; allowed: {FIFO!r}, or mixing.mode = 'average'",
        )
    if len(set(radio.codecs)) < len(radio.codecs):
        yield "radio.codecs", f"{list(radio.codecs)} names one twice; allowed: each once"


def _checkpoint_problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    from peers.storage import checkpoint

    resume = scenario.checkpoint.resume
    if resume is None:
        return
    if not any(checkpoint.path_of(Path(resume), device).is_file() for device in scenario.all_devices):
        yield (
            "checkpoint.resume",
            f"{resume!r} has no checkpoint of a device of this run; allowed: the folder of a run with "
            "checkpoint.save = true that has ended",
        )


def _event_problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    population = Population(scenario.initial_devices, scenario.on_crash)
    in_order = _in_order(scenario.event)
    yield from problems(in_order, population, scenario.round.count, scenario.adapter.max_devices)


def _in_order(events: tuple[EventConfig, ...]) -> list[tuple[int, EventConfig]]:
    """Events as they will happen, each with its place in the file."""
    return sorted(enumerate(events), key=lambda numbered: numbered[1].round)
