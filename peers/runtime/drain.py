"""The end of a device: it finishes queued work, sends what is queued, and leaves virtual time."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from peers.protocol.actions import Confirmed, DropBlock, Export, Log, SaveLeave
from peers.runtime.components import Components
from peers.runtime.event_queue import Kind
from peers.runtime.performer import ActionPerformer
from transport.clocks.windows import ABSENT
from transport.wire.limits import NEVER_NS

SECOND = 1_000_000_000
KEPT = (Log, DropBlock, Confirmed, Export, SaveLeave)  # the actions of a device that has ended
FLUSH_NS = 5 * SECOND  # longest time that an ending device spends on its queue


class Shutdown:
    """Ends a device in order (`drain`) or as a power loss would (`crash`)."""

    def __init__(self, components: Components, performer: ActionPerformer) -> None:
        self._c, self._performer = components, performer

    async def drain(self, reason: str) -> None:
        """Finish the learner's work, send queued messages for `FLUSH_NS` at most, and record the totals.

        Messages that have arrived are not answered any more. A leave among them is still carried out. In
        virtual time these are all messages that were ever sent to this process, so that the accounts of its
        links balance.
        """
        c = self._c
        await self._finish_work()
        await self._send_queued(c.clock.now() + FLUSH_NS)
        c.sender.abandon_all("end")
        if c.virtual is not None:
            c.virtual.round = ABSENT
            await c.virtual.outlast_messages()
        due_ns = c.clock.now() if c.virtual is None else NEVER_NS
        for planned in c.queue.drain_due(due_ns, Kind.MESSAGE):
            actions = planned.event(c.clock.now())
            await self._performer.perform([action for action in actions if isinstance(action, KEPT)])
        c.receipts.end(reason)
        await self._finish_work()
        self._record_totals(reason)
        await self._leave_virtual_time()

    async def end_before_start(self) -> None:
        """End a process whose device never joined. It sent nothing, so it has no totals."""
        self._c.events.record(self._c.clock.now(), "never_due")
        await self._finish_work()
        await self._leave_virtual_time()

    async def crash(self) -> NoReturn:
        """Finish the work that was decided before, leave virtual time and end without another word."""
        await self._finish_work()
        await self._leave_virtual_time()
        await self._c.links.flush(FLUSH_NS / SECOND)
        self._c.host.crash()

    async def _finish_work(self) -> None:
        """Wait until the learner thread is idle and the results of its work are recorded."""
        await asyncio.wrap_future(self._c.learner_thread.submit(lambda: None))
        await asyncio.sleep(0)

    async def _send_queued(self, until_ns: int) -> None:
        sender, clock = self._c.sender, self._c.clock
        while (due := sender.next_ns(clock.now())) is not None and due <= until_ns:
            if await clock.reach(due):
                sender.send_due(clock.now())

    def _record_totals(self, reason: str) -> None:
        c = self._c
        c.events.record(
            c.clock.now(),
            "finished",
            reason=reason,
            links=c.accounts.to_dict(histograms=True),
            **c.host.usage(),
            spent_total_bytes=c.sender.quota.spent_total,
            violations=c.sender.quota.violations,
            security_events=dict(c.links.security_events),
            windows=c.virtual.windows if c.virtual else None,
        )

    async def _leave_virtual_time(self) -> None:
        if self._c.virtual is not None:
            self._c.virtual.round = ABSENT
            await self._c.virtual.finish()
