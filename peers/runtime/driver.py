"""The event loop of a device: it takes the next due event, asks the protocol, and performs its actions.

Three sources have events at times of the clock: the queue (arriving messages, finished local steps, scripted
events), the protocol's timers and the sender (departures). External events, such as signals, come first.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Any, Literal

from peers.protocol.actions import Action
from peers.runtime import partition
from peers.runtime.components import Components
from peers.runtime.drain import Shutdown
from peers.runtime.event_queue import Kind
from peers.runtime.external_events import END_SIGNAL, ExternalEvents
from peers.runtime.performer import ActionPerformer
from peers.runtime.scripted_events import ScriptedEvents
from peers.storage import leave_wishes

Source = Literal["queue", "sender", "timer"]


class Driver:
    """Runs one device from its start to its exit."""

    def __init__(
        self,
        components: Components,
        scripted: ScriptedEvents,
        external: ExternalEvents,
    ) -> None:
        c = self._c = components
        self.protocol, self.accounts = c.protocol, c.accounts
        self._clock, self._virtual, self._queue, self._sender = c.clock, c.virtual, c.queue, c.sender
        self._scripted, self._external = scripted, external
        self._performer = ActionPerformer(c)
        self._shutdown = Shutdown(c, self._performer)

    async def run(self) -> int:
        """Run until the protocol exits; returns the exit status."""
        if self._c.host.signals:
            self._take_signals()
        self._read_partition(self._clock.now())
        receiving = asyncio.create_task(self._c.receiver.run())
        try:
            self._scripted.start_clock()
            if not self._scripted.absent:
                await self._performer.perform(self._scripted.start_device(self._clock.now()))
                await self._performer.perform(self._read_leaves(self._clock.now()))
            while self._performer.exit is None:
                if self._scripted.never_due:
                    await self._shutdown.end_before_start()
                    return 0
                if receiving.done():
                    receiving.result()
                if self._scripted.crashed:
                    await self._shutdown.crash()
                await self._step()
            await self._shutdown.drain(self._performer.exit.reason)
            return self._performer.exit.code
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            self._c.learner_thread.close()

    def _take_signals(self) -> None:
        self._external.on_signal(signal.SIGTERM, partial(self.protocol.signal, kind="leave"))
        self._external.on_signal(signal.SIGINT, partial(self.protocol.signal, kind="retire"))
        self._external.on_signal(END_SIGNAL, partial(self.protocol.signal, kind="end"))
        self._external.on_signal(partition.SIGNAL, self._read_testbed_files)

    def status(self) -> dict[str, Any]:
        """The answer to a health check: identity, progress, live members, blocks and traffic so far."""
        protocol, own = self.protocol, self.protocol.own
        return {
            "id": self._c.spec.id,
            "incarnation": None if own is None else own.incarnation,
            "slot": None if own is None else own.slot,
            "address": self._c.spec.advertise,
            "phase": protocol.phase.value,
            "round": protocol.round,
            "members": sorted(protocol.members.alive()),
            "blocks": sorted(map(str, protocol.blocks)),
            "view": protocol.members.digest().hex(),
            "security_events": dict(self._c.links.security_events),
            "links": self.accounts.to_dict(),
        }

    # -- one event after the other ---------------------------------------------------------------------
    async def _step(self) -> None:
        event = self._external.pop()
        if event is not None:
            await self._performer.perform(event(self._clock.now()))
            return
        source, at = self._next_due()
        if not await self._clock.reach(None if at is None else max(at, self._scripted.stalled_until_ns)):
            self._scripted.queue_due()
            return
        now = self._clock.now()
        match source:
            case "queue":
                await self._handle_next(now)
            case "sender":
                self._sender.send_due(now)
            case "timer":
                await self._performer.perform(self.protocol.tick(now))

    def _next_due(self) -> tuple[Source, int | None]:
        """The source of the next event, and its time. At equal times: queue, timer, sender.

        In real time, due departures go before overdue events of the queue: a device that is late with its
        messages still answers while it catches up.
        """
        source: Source = "queue"
        at, now = self._queue.next_ns(), self._clock.now()
        timer, departure = self.protocol.next_timer_ns(), self._sender.next_ns(now)
        if timer is not None and (at is None or timer < at):
            source, at = "timer", timer
        overdue = self._virtual is None and at is not None and at <= now
        if departure is not None and (at is None or departure < at or (overdue and departure <= now)):
            source, at = "sender", departure
        return source, at

    async def _handle_next(self, now: int) -> None:
        planned = self._queue.pop()
        if planned.ready is not None:
            await asyncio.wait([asyncio.wrap_future(planned.ready)])
            if planned.ready.cancelled() or planned.ready.exception():
                return  # the learner thread has reported the failure
        source = planned.source if planned.kind is Kind.MESSAGE else None
        await self._performer.perform(planned.event(now), source)

    def _read_testbed_files(self, now: int) -> list[Action]:
        """Read what a testbed with a real clock has written into the device's folder."""
        self._read_partition(now)
        return self._read_leaves(now)

    def _read_partition(self, now: int) -> None:
        self._sender.set_partition(partition.read(self._c.recorder.folder), now)

    def _read_leaves(self, now: int) -> list[Action]:
        delivered = leave_wishes.delivered(self._c.recorder.folder)
        return self.protocol.leaves(now, delivered) if delivered else []
