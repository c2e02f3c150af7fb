"""Failure detection: SWIM with Lifeguard's refinements, as a state machine: messages in, what to do out.

Das, Gupta, Motivala: "SWIM", 2002; Dadgar et al.: "Lifeguard", 2018 (health.py, suspicion.py). In each period
one member is pinged, round robin in an order drawn anew for each pass. Without an ack in time k others are
asked to ping it; without one by the period's end it is suspected, which everybody is told, itself too. A
later word that it signs refutes that; else it counts as crashed when the suspicion's time is over.

Here a device probes those that it has links with (overlay.py) and not all: a connection costs more than a
datagram. Each has as many probers as it probes itself, so that it is still probed once a period on average.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator_free.membership.local_health import LocalHealth
from coordinator_free.membership.suspicion import Limits, Sighting, Suspicions

NACK_SHARE = 0.8  # of the ack timeout: a helper's nack must be back before the period ends (memberlist)
MAX_ERRANDS = 256  # probes for others under way: who asks for more gets none


class Ping(NamedTuple):
    to: str
    number: int


class Ack(NamedTuple):
    """The one with this number answers, as one that was pinged or that a helper did it for."""

    to: str
    number: int


class Nack(NamedTuple):
    """A helper is there, but its target did not answer in time."""

    to: str
    number: int


class AskHelp(NamedTuple):
    to: str
    target: str
    number: int


class Spread(NamedTuple):
    """Tell everybody of a suspicion. `again`: only its subject, in case it has not heard."""

    about: Sighting
    accuser: str
    again: bool = False


class Correct(NamedTuple):
    """One that suspects an old word of a device is to be told the latest."""

    to: str
    device: str


class Refute(NamedTuple):
    """This device is suspected: it has to say something new of itself."""


class Confirm(NamedTuple):
    """A suspicion's time is over: the device has crashed."""

    about: Sighting
    suspected_ns: int
    accusers: tuple[str, ...]


Action = Ping | Ack | Nack | AskHelp | Spread | Correct | Refute | Confirm


@dataclass(frozen=True, slots=True)
class Settings:
    """`period_ns`: between two probes. `ack_ns`: how long a direct ack is waited for. Both times the local
    health's factor. `helpers`: k. `worst_health`: its largest score."""

    period_ns: int
    ack_ns: int
    helpers: int
    worst_health: int
    limits: Limits


@dataclass(slots=True)
class _Probe:
    """The one under way."""

    target: str
    number: int
    ask_ns: int  # when helpers are asked
    asked: bool = False
    helpers: int = 0
    nacks: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Errand:
    """A probe on behalf of another."""

    of: str
    number: int
    target: str
    nack_ns: int
    end_ns: int
    nacked: bool = False


class Swim:
    """One device's detector. `draw`: seeded, so that a run can be repeated."""

    def __init__(self, me: str, settings: Settings, draw: random.Random, now: int) -> None:
        self.me = me
        self.health = LocalHealth(settings.worst_health)
        self.suspicions = Suspicions(settings.limits)
        self._settings, self._draw = settings, draw
        self._sightings: dict[str, Sighting] = {}
        self._watched: set[str] = set()
        self._order: list[str] = []  # of those to be probed in this pass, the next one last
        self._probe: _Probe | None = None
        self._errands: dict[int, _Errand] = {}
        self._number = 0
        self._period_ns = now + draw.randrange(settings.period_ns)  # when the next one begins

    def know(self, sightings: Mapping[str, Sighting], watched: Iterable[str]) -> None:
        """The latest word of each living device, this one's too, and whom to probe from now on."""
        for _, sighting in sorted(sightings.items()):
            self.suspicions.heard_of(sighting)
        self.suspicions.keep(sightings)
        self._sightings = dict(sightings)
        before, self._watched = self._watched, {*watched} & {*sightings} - {self.me}
        for name in sorted(self._watched - before - {*self._order}):
            self._order.insert(self._draw.randint(0, len(self._order)), name)
        if self._probe is not None and self._probe.target not in self._watched:
            self._probe = None

    # -- time ----------------------------------------------------------------------------------------
    def next_ns(self) -> int:
        times = [self._period_ns]
        if self._probe is not None and not self._probe.asked:
            times.append(self._probe.ask_ns)
        times += [e.end_ns if e.nacked else e.nack_ns for e in self._errands.values()]
        suspicion = self.suspicions.next_ns()
        return min(times if suspicion is None else [*times, suspicion])

    def tick(self, now: int) -> list[Action]:
        """To be called at `next_ns`. If it is called late it was this device that stood still."""
        late = now - self.next_ns()
        if late > self._settings.ack_ns // 2:
            self.health.worse()
            self._delay(late + self._settings.ack_ns)  # there may be answers that it has yet to read
        out: list[Action] = self._run_errands(now)
        if self._probe is not None and not self._probe.asked and now >= self._probe.ask_ns:
            out += self._ask_for_help(self._probe)
        if now >= self._period_ns:
            out += self._give_up(now) + self._begin(now)
        for suspicion in self.suspicions.take_due(now):
            out.append(Confirm(suspicion.about, suspicion.since_ns, tuple(sorted(suspicion.accusers))))
        return out

    def _delay(self, by_ns: int) -> None:
        self._period_ns += by_ns
        self.suspicions.delay(by_ns)
        if self._probe is not None:
            self._probe.ask_ns += by_ns
        for errand in self._errands.values():
            errand.nack_ns += by_ns
            errand.end_ns += by_ns

    # -- own probes ----------------------------------------------------------------------------------
    def _begin(self, now: int) -> list[Action]:
        self._period_ns = now + self._settings.period_ns * self.health.factor
        told = [Spread(suspicion.about, self.me, again=True) for suspicion in self.suspicions]
        target = self._next_target()
        if target is None:
            return [*told]
        self._number += 1
        self._probe = _Probe(target, self._number, now + self._settings.ack_ns * self.health.factor)
        return [*told, Ping(target, self._number)]

    def _next_target(self) -> str | None:
        for _ in range(2):
            while self._order:
                name = self._order.pop()
                if name in self._watched:
                    return name
            self._order = sorted(self._watched)
            self._draw.shuffle(self._order)
        return None

    def _ask_for_help(self, probe: _Probe) -> list[Action]:
        probe.asked = True
        others = sorted(n for n in self._watched if n != probe.target and n not in self.suspicions)
        helpers = self._draw.sample(others, min(self._settings.helpers, len(others)))
        probe.helpers = len(helpers)
        return [AskHelp(helper, probe.target, probe.number) for helper in helpers]

    def _give_up(self, now: int) -> list[Action]:
        """The period is over. A probe without an answer is held against its target and, for every helper that
        has sent no nack either, or where there was none to ask, against this device."""
        probe, self._probe = self._probe, None
        if probe is None:
            return []
        self.health.worse(probe.helpers - len(probe.nacks) if probe.helpers else 1)
        return self._accuse(now, self._sightings[probe.target], self.me)

    def acked(self, now: int, number: int) -> list[Action]:
        """An answer to a probe of this device, or to one that it runs for another."""
        if self._probe is not None and self._probe.number == number:
            self._probe = None
            self.health.better()
            return []
        errand = self._errands.pop(number, None)
        return [] if errand is None else [Ack(errand.of, errand.number)]

    def nacked(self, source: str, number: int) -> None:
        if self._probe is not None and self._probe.number == number:
            self._probe.nacks.add(source)

    # -- for others ----------------------------------------------------------------------------------
    def asked(self, now: int, source: str, target: str, number: int) -> list[Action]:
        """Ping a target for one that got no answer from it."""
        if target not in self._sightings or target == self.me or len(self._errands) >= MAX_ERRANDS:
            return []
        self._number += 1
        nack_ns = now + int(NACK_SHARE * self._settings.ack_ns)
        end_ns = now + self._settings.period_ns
        self._errands[self._number] = _Errand(source, number, target, nack_ns, end_ns)
        return [Ping(target, self._number)]

    def _run_errands(self, now: int) -> list[Action]:
        out: list[Action] = []
        for errand in self._errands.values():
            if not errand.nacked and now >= errand.nack_ns:
                errand.nacked = True
                out.append(Nack(errand.of, errand.number))
        self._errands = {n: e for n, e in self._errands.items() if now < e.end_ns}
        return out

    # -- suspicions ----------------------------------------------------------------------------------
    def accused(self, now: int, source: str, about: Sighting, accuser: str) -> list[Action]:
        """Somebody says that a device does not answer. Strangers and those who are gone do not matter."""
        latest = self._sightings.get(about.device)
        if latest is None or accuser not in self._sightings:
            return []
        if about < latest:
            return [Correct(source, about.device)]
        if about.device != self.me:
            return self._accuse(now, latest, accuser)
        if about > latest:
            return []  # nobody has a later word of this device than itself
        self.health.worse()
        return [Refute()]

    def _accuse(self, now: int, about: Sighting, accuser: str) -> list[Action]:
        news = self.suspicions.accuse(now, about, accuser, len(self._sightings))
        return [Spread(about, accuser)] if news else []
