"""Failure detection: SWIM with the refinements of Lifeguard, as a state machine.

Messages go in, actions come out.

Sources: Das, Gupta and Motivala, "SWIM", 2002; Dadgar et al., "Lifeguard", 2018 (local_health.py,
suspicion.py). In each period a device pings one member, in round-robin order, shuffled anew for each pass. If
no ack arrives in time, it asks k helpers to ping the member. If none of them gets an ack by the end of the
period, it suspects the member and tells all members, the suspected one included. A later record that the
member signs refutes the suspicion. Otherwise the member counts as crashed at the suspicion's deadline.

Difference from SWIM: a device probes only its overlay partners (overlay.py), because a connection costs more
than a datagram. Each device has as many probers as it probes, so it is still probed once a period on average.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator_free.membership.local_health import LocalHealth
from coordinator_free.membership.suspicion import Limits, RecordVersion, Suspicions

NACK_SHARE = 0.8  # share of the ack timeout after which a helper sends a nack (as in memberlist)
MAX_INDIRECT_PROBES = 256  # probes on behalf of others at a time; further requests are ignored


class Ping(NamedTuple):
    """Send a ping to a device."""

    to: str
    number: int


class Ack(NamedTuple):
    """Answer a ping, or pass on the ack that a helper received."""

    to: str
    number: int


class Nack(NamedTuple):
    """Tell the prober that this helper is alive, but its target did not answer in time."""

    to: str
    number: int


class AskHelp(NamedTuple):
    """Ask a helper to ping `target` (the ping-req of SWIM)."""

    to: str
    target: str
    number: int


class Spread(NamedTuple):
    """Tell members of a suspicion. `again`: tell only its subject, in case the first message was lost."""

    about: RecordVersion
    accuser: str
    again: bool = False


class Correct(NamedTuple):
    """Send the latest record of `device` to a device that suspects an older one."""

    to: str
    device: str


class Refute(NamedTuple):
    """This device is suspected: sign a newer record."""


class Confirm(NamedTuple):
    """The deadline of a suspicion is over: declare that the device has crashed (the Confirm message of
    SWIM).
    """

    about: RecordVersion
    suspected_ns: int
    accusers: tuple[str, ...]


Action = Ping | Ack | Nack | AskHelp | Spread | Correct | Refute | Confirm


@dataclass(frozen=True, slots=True)
class Settings:
    """The timing of probes, in ns.

    `period_ns`: between two probes. `ack_ns`: wait for a direct ack. Both are multiplied by the local health
    factor. `helpers`: k. `worst_health`: the largest local health score.
    """

    period_ns: int
    ack_ns: int
    helpers: int
    worst_health: int
    limits: Limits


@dataclass(slots=True)
class _Probe:
    """The current probe. `ask_ns`: when to ask helpers; `helpers`: how many were asked."""

    target: str
    number: int
    ask_ns: int
    asked: bool = False
    helpers: int = 0
    nacks: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _IndirectProbe:
    """A probe on behalf of the device `of`, whose own probe has this number."""

    of: str
    number: int
    target: str
    nack_ns: int
    end_ns: int
    nacked: bool = False


class Swim:
    """The failure detector of one device. `draw`: a seeded generator, so that a run can be repeated."""

    def __init__(self, me: str, settings: Settings, draw: random.Random, now: int) -> None:
        self.me = me
        self.health = LocalHealth(settings.worst_health)
        self.suspicions = Suspicions(settings.limits)
        self._settings, self._draw = settings, draw
        self._versions: dict[str, RecordVersion] = {}
        self._watched: set[str] = set()
        self._order: list[str] = []  # members still to be probed in this pass, the next one last
        self._probe: _Probe | None = None
        self._indirect: dict[int, _IndirectProbe] = {}
        self._number = 0
        self._period_ns = now + draw.randrange(settings.period_ns)  # start of the next period

    def update_members(self, versions: Mapping[str, RecordVersion], watched: Iterable[str]) -> None:
        """Set the latest record version of each living device, this one included, and the devices to
        probe.
        """
        for _, version in sorted(versions.items()):
            self.suspicions.on_record(version)
        self.suspicions.keep_only(versions)
        self._versions = dict(versions)
        before, self._watched = self._watched, {*watched} & {*versions} - {self.me}
        for name in sorted(self._watched - before - {*self._order}):
            self._order.insert(self._draw.randint(0, len(self._order)), name)
        if self._probe is not None and self._probe.target not in self._watched:
            self._probe = None

    # -- time ----------------------------------------------------------------------------------------
    def next_ns(self) -> int:
        """When `tick` is due."""
        at = self._period_ns
        if self._probe is not None and not self._probe.asked:
            at = min(at, self._probe.ask_ns)
        for probe in self._indirect.values():
            at = min(at, probe.end_ns if probe.nacked else probe.nack_ns)
        suspicion = self.suspicions.next_ns()
        return at if suspicion is None else min(at, suspicion)

    def tick(self, now: int) -> list[Action]:
        """Do what is due. Call it at `next_ns`. If the call comes late, this device itself was slow."""
        late = now - self.next_ns()
        if late > self._settings.ack_ns // 2:
            self.health.worse()
            self._delay(late + self._settings.ack_ns)  # answers may have arrived that were not read yet
        out: list[Action] = self._run_indirect_probes(now)
        if self._probe is not None and not self._probe.asked and now >= self._probe.ask_ns:
            out += self._ask_for_help(self._probe)
        if now >= self._period_ns:
            out += self._give_up(now) + self._begin(now)
        for suspicion in self.suspicions.pop_expired(now):
            out.append(Confirm(suspicion.about, suspicion.since_ns, tuple(sorted(suspicion.accusers))))
        return out

    def _delay(self, by_ns: int) -> None:
        self._period_ns += by_ns
        self.suspicions.postpone(by_ns)
        if self._probe is not None:
            self._probe.ask_ns += by_ns
        for probe in self._indirect.values():
            probe.nack_ns += by_ns
            probe.end_ns += by_ns

    # -- own probes ----------------------------------------------------------------------------------
    def _begin(self, now: int) -> list[Action]:
        self._period_ns = now + self._settings.period_ns * self.health.factor
        reminders = [Spread(suspicion.about, self.me, again=True) for suspicion in self.suspicions]
        target = self._next_target()
        if target is None:
            return [*reminders]
        self._number += 1
        self._probe = _Probe(target, self._number, now + self._settings.ack_ns * self.health.factor)
        return [*reminders, Ping(target, self._number)]

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
        """End the period. If the probe got no answer, suspect its target.

        Each helper that sent no nack worsens the local health by 1, and so does a probe without helpers
        (Lifeguard).
        """
        probe, self._probe = self._probe, None
        if probe is None:
            return []
        self.health.worse(probe.helpers - len(probe.nacks) if probe.helpers else 1)
        return self._accuse(now, self._versions[probe.target], self.me)

    def on_ack(self, now: int, number: int) -> list[Action]:
        """An ack for a probe of this device, or for a probe on behalf of another."""
        if self._probe is not None and self._probe.number == number:
            self._probe = None
            self.health.better()
            return []
        probe = self._indirect.pop(number, None)
        return [] if probe is None else [Ack(probe.of, probe.number)]

    def on_nack(self, source: str, number: int) -> None:
        """A helper is alive, but its target did not answer it in time."""
        if self._probe is not None and self._probe.number == number:
            self._probe.nacks.add(source)

    # -- for others ----------------------------------------------------------------------------------
    def on_ping_request(self, now: int, source: str, target: str, number: int) -> list[Action]:
        """Ping `target` on behalf of `source`."""
        if target not in self._versions or target == self.me or len(self._indirect) >= MAX_INDIRECT_PROBES:
            return []
        self._number += 1
        nack_ns = now + int(NACK_SHARE * self._settings.ack_ns)
        end_ns = now + self._settings.period_ns
        self._indirect[self._number] = _IndirectProbe(source, number, target, nack_ns, end_ns)
        return [Ping(target, self._number)]

    def _run_indirect_probes(self, now: int) -> list[Action]:
        out: list[Action] = []
        for probe in self._indirect.values():
            if not probe.nacked and now >= probe.nack_ns:
                probe.nacked = True
                out.append(Nack(probe.of, probe.number))
        self._indirect = {n: e for n, e in self._indirect.items() if now < e.end_ns}
        return out

    # -- suspicions ----------------------------------------------------------------------------------
    def on_suspect(self, now: int, source: str, about: RecordVersion, accuser: str) -> list[Action]:
        """`source` reports that `accuser` suspects a device. Ignored if one of them is unknown or gone."""
        latest = self._versions.get(about.device)
        if latest is None or accuser not in self._versions:
            return []
        if about < latest:
            return [Correct(source, about.device)]
        if about.device != self.me:
            return self._accuse(now, latest, accuser)
        if about > latest:
            return []  # forged: only this device signs its records
        self.health.worse()
        return [Refute()]

    def _accuse(self, now: int, about: RecordVersion, accuser: str) -> list[Action]:
        news = self.suspicions.accuse(now, about, accuser, len(self._versions))
        return [Spread(about, accuser)] if news else []
