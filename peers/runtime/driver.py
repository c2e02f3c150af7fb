"""Performs what the protocol decides, one event at a time: sockets, pacing, the learner's thread, files.

What is to happen is on the agenda (messages at their arrival, finished local steps), in the protocol's timers
and in the outbox (departures); the clock says when it may. Signals and failures come from outside the clock
and are handled first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from coordinator_free.averaging.mixing import MODES
from peers.learning.learner import Learner, TrainResult
from peers.protocol import actions as do
from peers.protocol.signed_versions import Versions
from peers.protocol.state_machine import DeviceProtocol, Identity
from peers.runtime import partition
from peers.runtime.event_queue import Event, EventQueue, Kind
from peers.runtime.inbox import Inbox
from peers.runtime.learner_thread import Diagnosed, LearnerThread, Trained
from peers.runtime.receiver import Reception
from peers.runtime.recorder import Recorder, round_line
from peers.runtime.scripted_events import Actor, Script, Scripted
from peers.runtime.sender import Outbox
from peers.storage import checkpoint
from peers.unlearning.deletion_receipt import DeletionReceipt
from transport.clocks.real import Clock, RealClock
from transport.clocks.virtual import VirtualClock
from transport.clocks.windows import ABSENT
from transport.links.interface import Links, Received
from transport.security.keys import DeviceIdentity, verify
from transport.shaping.accounting import Accounts
from transport.wire.messages import Credit, Envelope, Hello, Message

if TYPE_CHECKING:
    from peers.runtime.main import DeviceSpec

Result = TypeVar("Result")
log = logging.getLogger("unweft")
SECOND = 1_000_000_000
FLUSH_NS = 5 * SECOND  # longest time that a device which ends gives its queue


class Driver:
    """One device's event loop."""

    def __init__(
        self,
        spec: DeviceSpec,
        links: Links,
        learner: Learner,
        recorder: Recorder,
        identity: DeviceIdentity,
    ) -> None:
        self.spec, self.links, self.learner, self.recorder = spec, links, learner, recorder
        self.accounts = Accounts()
        links.on_drop = lambda source, reason, size: self.accounts.link(source).dropped(reason, size)
        self.virtual = _virtual_clock(spec, links)
        self.clock: Clock = self.virtual or RealClock(spec.wall_clock)
        self.queue = EventQueue()
        versions = Versions(spec.id, identity.sign)
        self.learner_thread = LearnerThread(learner, recorder, spec.config, self._on_failure, versions)
        self.exit: do.Exit | None = None
        self._outside: deque[Event] = deque()
        self._busy_until_ns = 0
        self._trained = TrainResult((), 0.0)
        signed = versions if MODES[spec.config.mixing.mode]().shared_versions else None
        copies, start = self.learner_thread.copies, self.clock.now()
        self.outbox = Outbox(spec, learner, links, self.accounts, start, signed, copies)
        if self.virtual is not None:
            self.outbox.on_sent = self.virtual.on_sent
        links.on_broken = self._on_broken
        me = Identity(
            spec.id,
            spec.advertise,
            identity.public,
            spec.seeds,
            spec.cohort,
            spec.snapshot_every,
            learner.resumes() if spec.cohort and recorder.is_first else {},
        )
        self.protocol = DeviceProtocol(
            me,
            spec.config,
            learner.fingerprint.to_dict(),
            learner.difference,
            {group: learner.layout.size(group) for group in learner.groups},
            self.outbox.part_bytes,
            identity.sign,
            verify,
        )
        curve = spec.keys is not None
        rounds = spec.config.round.count
        self.inbox = Inbox(self.protocol, learner, self.accounts, links.security_events, curve, rounds)
        self.inbox.on_copy = self.learner_thread.heard
        self.reception = Reception(
            links, self.inbox, self.protocol, self.queue, self.clock, self.virtual, self._take
        )
        self._actor = Actor(
            Script(spec.script),
            self.virtual,
            self.queue,
            self._start,
            self.outbox.cut_off,
            self.protocol.signal,
            self._record_scripted,
        )
        self._perform: dict[type[do.Action], Callable[[Any], object]] = {
            do.Connect: lambda action: self.outbox.connect(action.peer, action.address, self.clock.now()),
            do.Disconnect: self._on_disconnect,
            do.Meet: self._on_meet,
            do.Tell: lambda action: self.outbox.tell(action.peer, self._incarnation(), action.message),
            do.Farewell: lambda action: self.outbox.farewell(action, self._incarnation()),
            do.Train: self._on_train,
            do.Diagnose: self._on_diagnose,
            do.Apply: lambda action: self.learner_thread.mix(action.mixes),
            do.AddBlock: self.learner_thread.add_block,
            do.OwnBlock: self.learner_thread.own_block,
            do.DropBlock: self._on_drop_block,
            do.Snapshot: lambda action: self.learner_thread.snapshot(
                action, self.spec.id, self._incarnation()
            ),
            do.Log: lambda action: self._record(self.clock.now(), action.event, **action.fields),
            do.RoundDone: self._on_round_done,
            do.Export: self._on_export,
            do.Exit: self._on_exit,
        }

    async def run(self) -> int:
        """Until the protocol says Exit; returns the exit status."""
        self._loop = asyncio.get_running_loop()
        for number, kind in ((signal.SIGTERM, "leave"), (signal.SIGINT, "retire")):
            self._loop.add_signal_handler(number, self._post, partial(self.protocol.signal, kind=kind))
        self._loop.add_signal_handler(partition.SIGNAL, self._post, self._read_partition)
        self._read_partition(self.clock.now())
        receiving = asyncio.create_task(self.reception.run())
        try:
            self._actor.enter()
            if not self._actor.waits:
                await self._do(self._start(self.clock.now()))
            while self.exit is None:
                if receiving.done():
                    receiving.result()
                if self._actor.dying:
                    await self._die()
                await self._step()
            await self._drain()
            return self.exit.code
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            self.learner_thread.close()

    # -- one event after the other ---------------------------------------------------------------------
    async def _step(self) -> None:
        if self._outside:
            await self._do(self._outside.popleft()(self.clock.now()))
            return
        source, at = self._due()
        if not await self.clock.reach(None if at is None else max(at, self._actor.stalled_until_ns)):
            self._actor.follow()
            return
        now = self.clock.now()
        match source:
            case "agenda":
                await self._happen(now)
            case "outbox":
                self.outbox.send_due(now)
            case _:
                await self._do(self.protocol.tick(now))

    def _due(self) -> tuple[str, int | None]:
        """Which source of events has the next one, and when. In this order, at equal times. In real time,
        what can be sent is sent: a device that is late with what has arrived answers while it catches up."""
        source, at = "agenda", self.queue.next_ns()
        timer, outbox = self.protocol.next_timer_ns(), self.outbox.next_ns(self.clock.now())
        if timer is not None and (at is None or timer < at):
            source, at = "timer", timer
        overdue = self.virtual is None and at is not None and at <= self.clock.now()
        if outbox is not None and (at is None or outbox < at or (overdue and outbox <= self.clock.now())):
            source, at = "outbox", outbox
        return source, at

    async def _happen(self, now: int) -> None:
        planned = self.queue.pop()
        if planned.ready is not None:
            await asyncio.wait([asyncio.wrap_future(planned.ready)])
            if planned.ready.cancelled() or planned.ready.exception():
                return  # told by `_on_failure`
        await self._do(planned.event(now))

    async def _do(self, actions: list[do.Action]) -> None:
        for action in actions:
            if isinstance(action, do.Publish):
                await self._publish(action)
            else:
                self._perform[type(action)](action)

    # -- from outside ----------------------------------------------------------------------------------
    def _post(self, event: Event) -> None:
        self._outside.append(event)
        self.clock.poke()

    def _read_partition(self, now: int) -> list[do.Action]:
        """Its signal: a testbed with a real clock has written whom this device hears no more."""
        self.outbox.cut_off(partition.read(self.recorder.folder), now)
        return []

    def _on_failure(self, error: BaseException) -> None:
        """The learner has failed, in its thread: that ends the device."""
        log.error("the learner failed", exc_info=error)
        actions: list[do.Action] = [do.Exit(1, f"{type(error).__name__}: {error}")]
        self._loop.call_soon_threadsafe(self._post, lambda now: actions)

    def _take(self, now: int, envelope: Envelope, message: Message, received: Received) -> list[do.Action]:
        if self._actor.waits:  # the process is there, the device is not
            self.accounts.link(envelope.src).dropped("absent", received.wire_bytes)
            return []
        if isinstance(message, Credit):
            self.outbox.credit(envelope.src, message.bytes)
        elif isinstance(message, Hello):
            self.outbox.credit(envelope.src)  # it may have been started again: nothing is on its way any more
            self.learner_thread.forget(envelope.src)
        return self.inbox.take(now, envelope, message, received)

    # -- the scenario, in virtual time -----------------------------------------------------------------
    def _start(self, now: int) -> list[do.Action]:
        self._record(now, "started", pid=os.getpid(), address=self.spec.advertise)
        return self.protocol.start(now)

    def _record_scripted(self, now: int, event: Scripted) -> None:
        self._record(now, "scripted", kind=event.kind, at_round=event.round)

    async def _die(self) -> NoReturn:
        """End the stream in virtual time, then go as a power loss would have it.

        What was decided before is done first, whatever real time that takes.
        """
        await self._settle()
        await self._leave_time()
        await self.links.flush(FLUSH_NS / SECOND)
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(1)  # not reached

    # -- the learner -----------------------------------------------------------------------------------
    def _on_train(self, action: do.Train) -> None:
        self.outbox.start_round(action.round, self.protocol.members.alive(), self.clock.now())
        trained = self.learner_thread.train(action)
        self._computed(trained, action.steps, partial(self._after_training, trained=trained))

    def _computed(self, done: Future[Any], steps: int, event: Event) -> None:
        """`event` happens when work that costs so many local steps is done, after what was begun before."""
        if self.virtual is None:
            self._when_done(done, lambda _: self._now(event))
            return
        start = max(self.clock.now(), self._busy_until_ns)
        self._busy_until_ns = start + steps * self.spec.config.compute.step_ns(self.spec.id)
        self.queue.add(self._busy_until_ns, Kind.LEARNER, event, ready=done)

    def _on_diagnose(self, action: do.Diagnose) -> None:
        done = self.learner_thread.diagnose(action)
        tried = sum(1 + max(a.steps for a in settings.values()) for settings in action.trials.values())
        self._computed(done, 1 + tried, partial(self._diagnosed, epoch=action.round, done=done))

    def _diagnosed(self, now: int, epoch: int, done: Future[Diagnosed]) -> list[do.Action]:
        values, found = done.result()
        self._record(now, "diagnosis", epoch=epoch, loss=found.loss, **found.cost._asdict())
        return self.protocol.diagnosed(now, epoch, values)

    def _after_training(self, now: int, trained: Future[Trained]) -> list[do.Action]:
        self._trained, changed, distances = trained.result()
        supply = self.outbox.supply(distances)
        return self.protocol.trained(
            now, changed, self.outbox.data_budget(), supply, frozenset(self.outbox.outages)
        )

    def _now(self, event: Event) -> None:
        self.queue.add(self.clock.now(), Kind.LEARNER, event)
        self.clock.poke()

    def _when_done(self, future: Future[Result], then: Callable[[Result], None]) -> None:
        """Call `then` in the event loop; failures are told by `_on_failure`."""

        def done(future: Future[Result]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._loop.call_soon_threadsafe(then, future.result())

        future.add_done_callback(done)

    def _on_drop_block(self, action: do.DropBlock) -> None:
        self.outbox.purge(action.key, action.reason)
        self.inbox.purge(action.key)
        if action.refit and self.protocol.own is not None:
            self.outbox.refitted(self.protocol.own.key)
        who = {"peer": action.key.device, "incarnation": action.key.incarnation}

        def deleted(receipt: DeletionReceipt | None) -> dict[str, object] | None:
            return None if receipt is None else {**who, **asdict(receipt)}

        self._record_when_done(self.learner_thread.drop_block(action), "deleted", deleted)

    def _on_export(self, action: do.Export) -> None:
        out = Path(self.spec.out)
        finished = self.protocol.round == self.spec.config.round.count - 1  # who retires leaves none
        if self.spec.config.checkpoint.save and finished:
            self.learner_thread.checkpoint(checkpoint.path_of(out, self.spec.id))
        exported = self.learner_thread.export(out / "adapters" / self.spec.id)
        self._record_when_done(exported, "exported", lambda sha256: {"adapter_sha256": sha256})

    def _record_when_done(
        self, future: Future[Result], event: str, fields: Callable[[Result], dict[str, object] | None]
    ) -> None:
        """Of the round in which the work was asked for. `fields`: None: there is nothing to record."""
        asked, round_ = self.clock.now(), self.protocol.round

        def done(result: Result) -> None:
            found = fields(result)
            if found is not None:
                self.recorder.event(self.clock.completed_ns(asked), round_, event, found)

        self._when_done(future, done)

    # -- the network -----------------------------------------------------------------------------------
    def _on_snapshot(self, action: do.Snapshot) -> None:
        self.learner_thread.snapshot(action, self.spec.id, self._incarnation())

    async def _publish(self, action: do.Publish) -> None:
        payloads = self.outbox.encoded(action)
        if payloads is None:
            payloads = await asyncio.wrap_future(
                self.learner_thread.submit(partial(self.outbox.encode, action))
            )
        self.outbox.publish(action, payloads, self._incarnation())

    def _on_broken(self, link: str) -> None:
        """A connection was lost, and what was on its way with it: that needs no credit any more."""
        if self.virtual is not None:
            self.virtual.on_link_broken(link)
        else:
            self.outbox.credit(link)
            self.clock.poke()

    def _on_disconnect(self, action: do.Disconnect) -> None:
        self.outbox.disconnect(action.peer)
        self.learner_thread.forget(action.peer)
        self.inbox.forget(action.peer)

    def _on_meet(self, action: do.Meet) -> None:
        self.outbox.disconnect(action.alias)
        self.accounts.rename(action.alias, action.peer)

    def _incarnation(self) -> int:
        return self.protocol.own.incarnation if self.protocol.own else 0

    # -- records ---------------------------------------------------------------------------------------
    def _record(self, at_ns: int, event: str, **fields: object) -> None:
        self.recorder.event(at_ns, self.protocol.round, event, fields)

    def _on_round_done(self, action: do.RoundDone) -> None:
        if self.virtual is not None:
            self.virtual.round = action.round
        self.learner_thread.record(
            {
                **round_line(action, self._trained, self.recorder.seconds),
                "granted_bytes": self.outbox.quota.budget_bytes,
                "spent_bytes": self.outbox.quota.spent,
                "links": self.accounts.to_dict(),
            }
        )

    # -- the end ---------------------------------------------------------------------------------------
    def _on_exit(self, action: do.Exit) -> None:
        self.exit = self.exit or action
        if action.code:
            log.error("%s: %s", self.spec.id, action.reason)

    async def _drain(self) -> None:
        """Finish what was begun: the learner's queue, the outgoing queue, what has arrived."""
        await self._settle()
        await self._send_rest(self.clock.now() + FLUSH_NS)
        self.outbox.abandon("end")
        for planned in self.queue.take(self.clock.now(), Kind.MESSAGE):
            await self._do([a for a in planned.event(self.clock.now()) if isinstance(a, do.Log)])
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._record(
            self.clock.now(),
            "finished",
            reason=self.exit.reason if self.exit else "",
            links=self.accounts.to_dict(histograms=True),
            train_cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
            peak_rss_bytes=usage.ru_maxrss * 1024,
            violations=self.outbox.quota.violations,
            security_events=dict(self.links.security_events),
            windows=self.virtual.windows if self.virtual else None,
        )
        await self._leave_time()

    async def _settle(self) -> None:
        """Until the learner has done all that was asked of it, and what that led to is recorded."""
        await asyncio.wrap_future(self.learner_thread.submit(lambda: None))
        await asyncio.sleep(0)

    async def _send_rest(self, until_ns: int) -> None:
        while (due := self.outbox.next_ns(self.clock.now())) is not None and due <= until_ns:
            if await self.clock.reach(due):
                self.outbox.send_due(self.clock.now())

    async def _leave_time(self) -> None:
        if self.virtual is not None:
            self.virtual.round = ABSENT
            await self.virtual.finish()


def _virtual_clock(spec: DeviceSpec, links: Links) -> VirtualClock | None:
    if spec.config.clock != "virtual":
        return None
    return VirtualClock(spec.id, spec.life, spec.group, spec.channel.min_latency_ns, links)
