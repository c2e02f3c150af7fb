"""Events of the scenario under the virtual clock, where each device performs its own events.

Under the real clock the launcher causes these events from outside, with signals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from peers.protocol.actions import Action
from peers.runtime.event_queue import Event, EventQueue, Kind
from peers.runtime.spec import ScriptedEvent
from transport.clocks.virtual import VirtualClock
from transport.clocks.windows import ABSENT, STARTED

SECOND = 1_000_000_000
ARRIVALS = ("join", "return")


class ScriptedEvents:
    """Queues the events of a device's script when they are due, and performs them."""

    def __init__(
        self,
        script: tuple[ScriptedEvent, ...],
        virtual: VirtualClock | None,
        queue: EventQueue,
        start_device: Event,
        set_partition: Callable[[frozenset[str], int], None],
        signal: Callable[[int, str], list[Action]],
        record: Callable[[int, ScriptedEvent], None],
    ) -> None:
        """`signal`: the protocol's handler of `leave` and `retire`. `record`: writes an event's log line."""
        self._pending = sorted(script, key=lambda event: event.round)
        self._virtual, self._queue, self.start_device = virtual, queue, start_device
        self._set_partition, self._signal, self._record = set_partition, signal, record
        self.stalled_until_ns = 0
        self.crashed = self.never_due = False

    @property
    def absent(self) -> bool:
        """Whether the device has yet to join: the process runs, the protocol does not."""
        return any(event.kind in ARRIVALS for event in self._pending)

    def start_clock(self) -> None:
        """Let the process take part in virtual time. Without a virtual clock this does nothing."""
        if self._virtual is not None:
            self._virtual.start()
            self._virtual.round = ABSENT if self.absent else STARTED

    def queue_due(self) -> None:
        """Queue the events that the last window made due, for the start of that window.

        `never_due`: the device has yet to join and no device is present, so no round will be closed.
        """
        grant = None if self._virtual is None else self._virtual.grant
        if grant is None:
            return
        if grant.slowest_round is None:
            self.never_due = self.absent
            return
        for event in self._pop_due(grant.slowest_round):
            self._queue.add(grant.start_ns, Kind.SCRIPT, partial(self._perform, event=event))

    def _pop_due(self, slowest_round: int) -> list[ScriptedEvent]:
        """Remove the due events from the script.

        A device arrives after its earlier process has written its last record. The events after its arrival
        wait until it has closed a round itself.
        """
        assert self._virtual is not None
        due: list[ScriptedEvent] = []
        while self._pending and self._pending[0].round <= slowest_round:
            arrives = self._pending[0].kind in ARRIVALS
            if arrives and not self._virtual.earlier_life_ended:
                break
            due.append(self._pending.pop(0))
            if arrives:
                break
        return due

    def _perform(self, now: int, event: ScriptedEvent) -> list[Action]:
        assert self._virtual is not None
        self._record(now, event)
        match event.kind:
            case "join" | "return":
                self._virtual.round = STARTED
                return self.start_device(now)
            case "stall":
                self.stalled_until_ns = now + int(event.duration_s * SECOND)
            case "crash":
                self.crashed = True
            case "partition" | "heal":
                self._set_partition(event.cut_off, now)
            case _:
                return self._signal(now, event.kind)
        return []
