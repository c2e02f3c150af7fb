"""What happens to devices during a run: events that a scenario lists, churn that it draws from its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from peers.config import Section

DEVICE_ID = r"^[A-Za-z][A-Za-z0-9_-]{0,59}$"  # ids become folder names and keys such as d5@0
GONE = ("leave", "retire", "crash")
ARRIVALS = ("join", "return")
OF_THE_NETWORK = ("partition", "heal")
DeviceId = Annotated[str, Field(pattern=DEVICE_ID)]
Churned = Literal["leave", "retire", "crash", "stall", "join", "return"]


class EventConfig(Section):
    """What happens to a device, or between devices, once every device has closed `round`."""

    round: Annotated[int, Field(ge=0)]
    kind: Literal["leave", "retire", "crash", "stall", "join", "return", "partition", "heal"]
    device: DeviceId | None = None  # all kinds but partition and heal
    duration_s: Annotated[float, Field(gt=0)] | None = None  # stall: seconds until it goes on
    groups: tuple[tuple[DeviceId, ...], ...] = ()  # partition: who hears each other; the rest is a group too


class ChurnConfig(Section):
    """Random events: a Poisson process over rounds, drawn from the seed; who and what, uniformly."""

    rate: Annotated[float, Field(ge=0, le=10)] = 0.0  # mean number of events a round
    kind: Churned | tuple[Churned, ...] = ("leave", "crash", "join")
    start: Annotated[int, Field(ge=0)] = 0  # first round
    stop: Annotated[int, Field(ge=0)] | None = None  # last one; None: ten rounds before the end
    stall_s: Annotated[float, Field(gt=0)] = 1.0  # how long a stall lasts
    least: Annotated[int, Field(ge=1)] = 2  # live devices: nobody goes when there are no more
    most: Annotated[int, Field(ge=1)] | None = None  # live devices: nobody comes when there are as many

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,) if isinstance(self.kind, str) else self.kind

    def last_round(self, rounds: int) -> int:
        """After which nothing is drawn any more, in a run of so many rounds."""
        return rounds - 10 if self.stop is None else min(self.stop, rounds - 2)


class Population:
    """Who is live and who holds a slot, event by event."""

    def __init__(self, devices: Iterable[str], on_crash: str) -> None:
        self.live = list(devices)
        self.gone: list[str] = []
        self.kept = 0  # blocks that stay in their slots although their owner has gone
        self._on_crash = on_crash

    def apply(self, event: EventConfig) -> None:
        """Take an event for granted, possible or not."""
        device = event.device or ""
        if event.kind in ARRIVALS:
            self.gone = [d for d in self.gone if d != device]
            self.live += [] if device in self.live else [device]
        elif event.kind in GONE and device in self.live:
            self.live.remove(device)
            self.gone.append(device)
            self.kept += event.kind == "retire" or (event.kind == "crash" and self._on_crash == "keep")

    @property
    def slots(self) -> int:
        return len(self.live) + self.kept


def churn(
    config: ChurnConfig, seed: int, rounds: int, slots: int, population: Population, fixed: list[EventConfig]
) -> list[EventConfig]:
    """The events that the seed draws, beside those that are `fixed`; none that cannot be at its time."""
    draw = np.random.Generator(np.random.Philox(key=seed + (1 << 64)))
    stop = config.last_round(rounds)
    named = {*population.live, *(event.device for event in fixed)}
    prefix = population.live[0].rstrip("0123456789")
    new = (name for number in range(1 << 30) if (name := f"{prefix}{number}") not in named)
    found: list[EventConfig] = []
    left = sorted(fixed, key=lambda event: event.round)
    for round_ in range(config.start, stop + 1):
        while left and left[0].round <= round_:
            population.apply(left.pop(0))
        for _ in range(int(draw.poisson(config.rate))):
            event = _draw(config, draw, round_, slots, population, new)
            if event is not None:
                population.apply(event)
                found.append(event)
    return found


def _draw(
    config: ChurnConfig,
    draw: np.random.Generator,
    round_: int,
    slots: int,
    population: Population,
    new: Iterator[str],
) -> EventConfig | None:
    kind = config.kinds[int(draw.integers(len(config.kinds)))]
    pick = float(draw.random())
    if kind in ARRIVALS:
        full = population.slots >= slots or (config.most is not None and len(population.live) >= config.most)
        if full or (kind == "return" and not population.gone):
            return None
        device = next(new) if kind == "join" else _one_of(population.gone, pick)
    elif len(population.live) <= (0 if kind == "stall" else config.least):
        return None
    else:
        device = _one_of(population.live, pick)
    seconds = config.stall_s if kind == "stall" else None
    return EventConfig.model_validate(
        {"round": round_, "kind": kind, "device": device, "duration_s": seconds}
    )


def _one_of(devices: list[str], pick: float) -> str:
    return sorted(devices)[int(pick * len(devices))]


def due(
    pending: Iterable[EventConfig],
    rounds: Mapping[str, int],
    can_return: Callable[[str], bool] = lambda device: True,
) -> EventConfig | None:
    """The first event whose time has come; ask again once it has happened, `rounds` may then differ.

    rounds: the last round of each device that is there; -1: it has not begun, and only what is to happen to
    it waits. An arrival waits for the end of its device's last life, a return also for can_return. What waits
    holds up that device's later events and nobody else's.
    """
    slowest = min((last for last in rounds.values() if last >= 0), default=-1)
    waiting: set[str | None] = set()
    for event in pending:
        if event.round > slowest or event.device in waiting:
            continue
        if event.kind in ARRIVALS:
            ready = event.device not in rounds and (event.kind == "join" or can_return(event.device or ""))
        else:
            ready = rounds.get(event.device or "") != -1
        if ready:
            return event
        waiting.add(event.device)
    return None


def problems(
    events: list[tuple[int, EventConfig]], population: Population, rounds: int, slots: int
) -> Iterator[tuple[str, str]]:
    """What cannot be, as (key path, value and what is allowed): the events are replayed in their order."""
    if population.slots > slots:
        yield "devices.count", _too_many(population.slots, slots)
    for number, event in events:
        for key, problem in _problems(event, population, rounds):
            yield f"event.{number}.{key}", problem
        population.apply(event)
        if event.kind in ARRIVALS and population.slots > slots:
            yield f"event.{number}.device", _too_many(population.slots, slots)
        if not population.live:
            yield (
                f"event.{number}.device",
                f"{event.device!r} is the last live device; allowed: one that is not",
            )


def _problems(event: EventConfig, population: Population, rounds: int) -> Iterator[tuple[str, str]]:
    last = rounds - 2
    if event.round > last:
        yield "round", f"{event.round} is too late; allowed: 0 to {last}, since round.count = {rounds}"
    if (event.kind == "stall") != (event.duration_s is not None):
        yield "duration_s", "goes with kind 'stall', which needs it; allowed: seconds above 0"
    if (event.kind == "partition") != bool(event.groups):
        yield "groups", "go with kind 'partition', which needs them; allowed: lists of devices"
    if (event.kind in OF_THE_NETWORK) != (event.device is None):
        yield "device", "goes with all kinds but partition and heal; allowed: the id of one"
    elif event.device is not None:
        yield from _device_problems(event, population)
    named = [device for group in event.groups for device in group]
    if len(named) != len(set(named)):
        yield "groups", "name a device twice; allowed: each in one group"


def _device_problems(event: EventConfig, population: Population) -> Iterator[tuple[str, str]]:
    here = f"live at round {event.round} are {names(population.live)}"
    if event.kind == "join" and event.device in population.live:
        yield "device", f"{event.device!r} cannot join: it is live; {here}"
    elif event.kind == "return" and event.device not in population.gone:
        yield "device", f"{event.device!r} cannot return: it has not gone; allowed: one that has"
    elif event.kind not in ARRIVALS and event.device not in population.live:
        yield "device", f"{event.device!r} cannot {event.kind}: it is not live; {here}"


def _too_many(needed: int, slots: int) -> str:
    return f"{needed} slots are needed and adapter.max_devices is {slots}; allowed: no more than {slots}"


def names(devices: Iterable[str]) -> str:
    return ", ".join(sorted(devices, key=lambda name: (len(name), name)))


def cut_off(device: str, groups: Iterable[Iterable[str]], devices: Iterable[str]) -> frozenset[str]:
    """Whom a device does not hear in a partition: everyone outside its own group."""
    listed = [frozenset(group) for group in groups]
    rest = frozenset(devices) - frozenset().union(*listed)
    own = next((group for group in [*listed, rest] if device in group), rest)
    return frozenset(devices) - own - {device}
