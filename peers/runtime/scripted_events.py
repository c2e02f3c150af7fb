"""What a scenario makes a device do at virtual times: with a real clock the launcher does it from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from peers.protocol.actions import Action
from peers.runtime.event_queue import Event, EventQueue, Kind
from transport.clocks.virtual import VirtualClock
from transport.clocks.windows import ABSENT, STARTED

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scripted:
    """Once every device that is there has closed `round`. `join`, `return`: this device starts only then."""

    round: int
    kind: Literal["leave", "retire", "crash", "stall", "join", "return", "partition", "heal"]
    duration_s: float = 0.0  # stall: emulated seconds until it goes on
    cut_off: frozenset[str] = frozenset()  # partition: whom this device does not hear any more


class Script:
    """A device's part of a scenario, taken event by event."""

    def __init__(self, events: tuple[Scripted, ...]) -> None:
        self._left = sorted(events, key=lambda event: event.round)

    @property
    def waits(self) -> bool:
        """The device has yet to join."""
        return any(event.kind in ("join", "return") for event in self._left)

    def due(self, slowest_round: int | None) -> list[Scripted]:
        """What the slowest device's closed round makes due; taken once."""
        due = [e for e in self._left if slowest_round is not None and e.round <= slowest_round]
        self._left = [e for e in self._left if e not in due]
        return due


class Actor:
    """Acts a device's script out. `cut_off`, `signal`: of its outbox and protocol; `begin`: its start."""

    def __init__(
        self,
        script: Script,
        virtual: VirtualClock | None,
        queue: EventQueue,
        begin: Event,
        cut_off: Callable[[frozenset[str], int], None],
        signal: Callable[[int, str], list[Action]],
        record: Callable[[int, Scripted], None],
    ) -> None:
        self._script, self._virtual, self._queue = script, virtual, queue
        self._begin, self._cut_off, self._signal, self._record = begin, cut_off, signal, record
        self.stalled_until_ns = 0
        self.dying = False

    @property
    def waits(self) -> bool:
        """The process is there, the device has yet to join."""
        return self._script.waits

    def enter(self) -> None:
        """The process takes part in virtual time, if there is one."""
        if self._virtual is not None:
            self._virtual.start()
            self._virtual.round = ABSENT if self.waits else STARTED

    def follow(self) -> None:
        """What the last window has made due is for its start."""
        grant = None if self._virtual is None else self._virtual.grant
        if grant is None:
            return
        for event in self._script.due(grant.slowest_round):
            self._queue.add(grant.start_ns, Kind.SCRIPT, partial(self._act_out, event=event))

    def _act_out(self, now: int, event: Scripted) -> list[Action]:
        assert self._virtual is not None
        self._record(now, event)
        match event.kind:
            case "join" | "return":
                self._virtual.round = STARTED
                return self._begin(now)
            case "stall":
                self.stalled_until_ns = now + int(event.duration_s * SECOND)
            case "crash":
                self.dying = True
            case "partition" | "heal":
                self._cut_off(event.cut_off, now)
            case _:
                return self._signal(now, event.kind)
        return []
