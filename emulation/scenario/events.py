"""Membership and network events of a run: those that a scenario lists, and churn drawn from its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from coordinator_free.ranges import DEVICE_ID
from peers.section import Section, about

GONE = ("leave", "retire", "crash")
LOST = (*GONE, "stall")  # a device that stalls may be taken for dead
ARRIVALS = ("join", "return")
OF_THE_NETWORK = ("partition", "heal")
KINDS = {
    "leave": "The device leaves and asks to be forgotten (SIGTERM).",
    "retire": "The device leaves. Its block stays, frozen (SIGINT).",
    "crash": "The device is killed (SIGKILL).",
    "stall": "The device stops for duration_s, then continues (SIGSTOP, SIGCONT).",
    "join": "A device that is not there starts.",
    "return": "A device that has gone starts again, in a new incarnation.",
    "partition": "Devices of different groups cannot reach each other.",
    "heal": "All devices reach each other again.",
}
DeviceId = Annotated[str, Field(pattern=DEVICE_ID)]
Churned = Literal["leave", "retire", "crash", "stall", "join", "return"]


class EventConfig(Section):
    """An event of one device, or of the network. It happens when every live device has closed `round`."""

    round: Annotated[int, about("The event happens after this round.", unit="rounds", ge=0)]
    kind: Annotated[
        Literal["leave", "retire", "crash", "stall", "join", "return", "partition", "heal"],
        about("What happens: `unweft list events`."),
    ]
    device: Annotated[DeviceId | None, about("The device. For all kinds except partition and heal.")] = None
    duration_s: Annotated[float | None, about("stall: time until the device continues.", gt=0)] = None
    groups: Annotated[
        tuple[tuple[DeviceId, ...], ...],
        about("partition: groups of devices. Devices that are not listed form one more group."),
    ] = ()


class ChurnConfig(Section):
    """Random events: a Poisson process over rounds. Kind and device are drawn uniformly."""

    rate: Annotated[float, about("Mean number of events.", unit="events per round", ge=0, le=10)] = 0.0
    kind: Annotated[
        Churned | tuple[Churned, ...], about("The kind of every event, or kinds to draw from.")
    ] = ("leave", "crash", "join")
    start: Annotated[int, about("First round with events.", unit="rounds", ge=0)] = 0
    stop: Annotated[
        int | None, about("Last round. Without it: ten rounds before the end.", unit="rounds", ge=0)
    ] = None
    stall_s: Annotated[float, about("Duration of a stall.", gt=0)] = 1.0
    least: Annotated[int, about("With this many live devices, no device leaves.", unit="devices", ge=1)] = 2
    most: Annotated[
        int | None, about("With this many live devices, no device joins.", unit="devices", ge=1)
    ] = None

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,) if isinstance(self.kind, str) else self.kind

    def last_round(self, rounds: int) -> int:
        """The last round with drawn events, in a run of `rounds` rounds."""
        return rounds - 10 if self.stop is None else min(self.stop, rounds - 2)


class Population:
    """The live devices and the occupied slots, updated event by event."""

    def __init__(self, devices: Iterable[str], on_crash: str) -> None:
        self.live = list(devices)
        self.gone: list[str] = []
        self.kept = 0  # blocks that stay in their slots after their owners are gone
        self._on_crash = on_crash

    def apply(self, event: EventConfig) -> None:
        """Update the population. The event is not checked."""
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


def draw_churn(
    config: ChurnConfig, seed: int, rounds: int, slots: int, population: Population, fixed: list[EventConfig]
) -> list[EventConfig]:
    """Draw the random events of a run. Each event is possible after the `fixed` and drawn events before it.

    slots: the number of slots. population: at the start; it is updated.
    """
    draw = np.random.Generator(np.random.Philox(key=seed + (1 << 64)))
    stop = config.last_round(rounds)
    named = {*population.live, *(event.device for event in fixed)}
    prefix = population.live[0].rstrip("0123456789")
    new = (name for number in range(1 << 30) if (name := f"{prefix}{number}") not in named)
    drawn: list[EventConfig] = []
    remaining = sorted(fixed, key=lambda event: event.round)
    for round_ in range(config.start, stop + 1):
        while remaining and remaining[0].round <= round_:
            population.apply(remaining.pop(0))
        for _ in range(int(draw.poisson(config.rate))):
            event = _draw(config, draw, round_, slots, population, new)
            if event is not None:
                population.apply(event)
                drawn.append(event)
    return drawn


def _draw(
    config: ChurnConfig,
    draw: np.random.Generator,
    round_: int,
    slots: int,
    population: Population,
    new: Iterator[str],
) -> EventConfig | None:
    """One random event; None if an event of the drawn kind is impossible now. new: ids of newcomers."""
    kind = config.kinds[int(draw.integers(len(config.kinds)))]
    pick = float(draw.random())
    if kind in ARRIVALS:
        full = population.slots >= slots or (config.most is not None and len(population.live) >= config.most)
        if full or (kind == "return" and not population.gone):
            return None
        device = next(new) if kind == "join" else _pick(population.gone, pick)
    elif len(population.live) <= (0 if kind == "stall" else config.least):
        return None
    else:
        device = _pick(population.live, pick)
    seconds = config.stall_s if kind == "stall" else None
    return EventConfig.model_validate(
        {"round": round_, "kind": kind, "device": device, "duration_s": seconds}
    )


def _pick(devices: list[str], pick: float) -> str:
    """The device at the share `pick` of the sorted list."""
    return sorted(devices)[int(pick * len(devices))]


def due(
    pending: Iterable[EventConfig],
    rounds: Mapping[str, int],
    can_return: Callable[[str], bool] = lambda device: True,
    has_to_wait: Callable[[EventConfig], bool] = lambda event: False,
) -> EventConfig | None:
    """The first pending event that may happen now, or None.

    rounds: the last closed round of each running device; -1: the device has not begun its rounds.
    An event of a device that has not begun waits. An arrival waits until the earlier process of its device
    has ended, and a return also waits for can_return. Other events wait while has_to_wait. A waiting event
    delays later events of the same device only.
    """
    slowest = min((last for last in rounds.values() if last >= 0), default=-1)
    waiting: set[str | None] = set()
    for event in pending:
        if event.round > slowest or event.device in waiting:
            continue
        if event.kind in ARRIVALS:
            ready = event.device not in rounds and (event.kind == "join" or can_return(event.device or ""))
        else:
            ready = rounds.get(event.device or "") != -1 and not has_to_wait(event)
        if ready:
            return event
        waiting.add(event.device)
    return None


def event_problems(
    events: list[tuple[int, EventConfig]], population: Population, rounds: int, slots: int
) -> Iterator[tuple[str, str]]:
    """Replay the events in order and yield each impossible one: (key path, value and allowed values).

    events: by round, each with its index in the file. population: at the start; it is updated.
    """
    if population.slots > slots:
        yield "devices.count", _too_many(population.slots, slots)
    for number, event in events:
        for key, problem in _one_event_problems(event, population, rounds):
            yield f"event.{number}.{key}", problem
        population.apply(event)
        if event.kind in ARRIVALS and population.slots > slots:
            yield f"event.{number}.device", _too_many(population.slots, slots)
        if not population.live:
            yield (
                f"event.{number}.device",
                f"{event.device!r} is the last live device; allowed: another device",
            )


def _one_event_problems(event: EventConfig, population: Population, rounds: int) -> Iterator[tuple[str, str]]:
    last = rounds - 2
    if event.round > last:
        yield "round", f"{event.round} is too late; allowed: 0 to {last}, since round.count = {rounds}"
    if (event.kind == "stall") != (event.duration_s is not None):
        yield "duration_s", "belongs to kind 'stall', which requires it; allowed: seconds above 0"
    if (event.kind == "partition") != bool(event.groups):
        yield "groups", "belong to kind 'partition', which requires them; allowed: lists of devices"
    if (event.kind in OF_THE_NETWORK) != (event.device is None):
        yield (
            "device",
            "belongs to all kinds but partition and heal; allowed: the id of one device",
        )
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
        yield "device", f"{event.device!r} cannot return: it is not gone; allowed: a device that is gone"
    elif event.kind not in ARRIVALS and event.device not in population.live:
        yield "device", f"{event.device!r} cannot {event.kind}: it is not live; {here}"


def _too_many(needed: int, slots: int) -> str:
    return f"{needed} slots are needed and adapter.max_devices is {slots}; allowed: no more than {slots}"


def names(devices: Iterable[str]) -> str:
    """The ids as one text, shorter ids first: d2 before d10."""
    return ", ".join(sorted(devices, key=lambda name: (len(name), name)))


def cut_off(device: str, groups: Iterable[Iterable[str]], devices: Iterable[str]) -> frozenset[str]:
    """The devices that a device cannot reach in a partition: all outside its own group."""
    listed = [frozenset(group) for group in groups]
    rest = frozenset(devices) - frozenset().union(*listed)
    own = next((group for group in [*listed, rest] if device in group), rest)
    return frozenset(devices) - own - {device}
