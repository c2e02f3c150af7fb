"""Performs what the protocol decides: sockets, pacing, the learner's thread, files. One event at a time.

Events come from one queue (messages, finished local steps, signals) and from the protocol's timers. The
learner works in a thread of its own, first in first out: what is decided in order happens in order, while the
event loop goes on answering.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from coordinator_free.membership import Key
from coordinator_free.mixing import Mix, Part
from peers import actions as do
from peers.blocks import BlockKey
from peers.inbox import Inbox
from peers.learner import Learner, Receipt, TrainResult
from peers.outbox import Outbox
from peers.protocol import DeviceProtocol, Identity
from peers.recorder import Recorder
from transport.accounting import Accounts
from transport.keys import DeviceIdentity, verify
from transport.zmq_links import ZmqLinks

if TYPE_CHECKING:
    from peers.device import DeviceSpec

Event = Callable[[int], list[do.Action]]
Result = TypeVar("Result")
log = logging.getLogger("unweft")
FLUSH_S = 5.0


class Driver:
    """One device's event loop."""

    def __init__(
        self,
        spec: DeviceSpec,
        links: ZmqLinks,
        learner: Learner,
        recorder: Recorder,
        identity: DeviceIdentity,
    ) -> None:
        self.spec, self.links, self.learner, self.recorder = spec, links, learner, recorder
        self.accounts = Accounts()
        links.on_drop = lambda source, reason, size: self.accounts.link(source).dropped(reason, size)
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self.exit: do.Exit | None = None
        self._changed: set[Part] = set()
        self._trained = TrainResult(0.0, 0, 0.0)
        curve = spec.keys is not None
        self.outbox = Outbox(spec.id, spec.config.radio, learner, links, self.accounts, self.now(), curve)
        me = Identity(spec.id, spec.advertise, identity.public, spec.seeds, spec.cohort, spec.snapshot_every)
        self.protocol = DeviceProtocol(
            me,
            spec.config,
            learner.fingerprint.to_dict(),
            learner.difference,
            learner.groups,
            self.outbox.part_bytes,
            identity.sign,
            verify,
        )
        self.inbox = Inbox(self.protocol, learner, self.accounts)
        self._perform = {
            do.Connect: self._on_connect,
            do.Disconnect: self._on_disconnect,
            do.Meet: self._on_meet,
            do.Tell: self._on_tell,
            do.Publish: self._on_publish,
            do.Farewell: self._on_farewell,
            do.Train: self._on_train,
            do.Apply: self._on_apply,
            do.AddBlock: self._on_add_block,
            do.OwnBlock: self._on_own_block,
            do.DropBlock: self._on_drop_block,
            do.Snapshot: self._on_snapshot,
            do.Log: self._on_log,
            do.RoundDone: self._on_round_done,
            do.Export: self._on_export,
            do.Exit: self._on_exit,
        }

    def now(self) -> int:
        return time.monotonic_ns()

    async def run(self) -> int:
        """Until the protocol says Exit; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        for number, kind in ((signal.SIGTERM, "leave"), (signal.SIGINT, "retire")):
            loop.add_signal_handler(number, self._post, partial(self._signal, kind=kind))
        self._event("started", pid=os.getpid(), address=self.spec.advertise)
        background = [asyncio.create_task(self._receive()), asyncio.create_task(self.outbox.pace(self.now))]
        try:
            await self._do(self.protocol.start(self.now()))
            while self.exit is None:
                _raise_if_failed(background)
                await self._step()
            await self._drain()
            return self.exit.code
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self.worker.shutdown(wait=True, cancel_futures=True)

    async def _step(self) -> None:
        due = self.protocol.next_timer_ns()
        wait = None if due is None else max(0.0, (due - self.now()) / 1e9)
        if wait == 0.0:
            await self._do(self.protocol.tick(self.now()))
            return
        try:
            event = await asyncio.wait_for(self.events.get(), wait)
        except TimeoutError:
            return
        await self._do(event(self.now()))

    async def _receive(self) -> None:
        while True:
            received = await self.links.recv()
            self._post(partial(self.inbox.take, received=received))

    def _post(self, event: Event) -> None:
        self.events.put_nowait(event)

    def _signal(self, now: int, kind: str) -> list[do.Action]:
        return self.protocol.signal(now, kind)

    async def _do(self, actions: list[do.Action]) -> None:
        for action in actions:
            pending = self._perform[type(action)](action)  # type: ignore[operator]
            if pending is not None:
                await pending

    # -- the learner's thread --------------------------------------------------------------------------
    def _learn(
        self, work: Callable[[], Result], then: Callable[[int, Result], list[do.Action]] | None = None
    ) -> None:
        """Queue work for the learner; `then` becomes an event when it is done. A failure ends the device."""

        def done(future: Future[Result]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            event: Event = (
                (lambda now: [do.Exit(1, f"{type(error).__name__}: {error}")]) if error else _nothing
            )
            if error is None and then is not None:
                event = lambda now: then(now, future.result())  # noqa: E731
            if error:
                log.error("the learner failed", exc_info=error)
            self._loop.call_soon_threadsafe(self._post, event)

        self.worker.submit(work).add_done_callback(done)

    def _on_train(self, action: do.Train) -> None:
        self.outbox.start_round()
        self._learn(partial(self._train, action), self._after_training)

    def _train(self, action: do.Train) -> tuple[TrainResult, set[Part]]:
        changed, self._changed = self._changed, set()
        result = self.learner.train(action.round, action.steps, action.rehearse)
        if action.damping != 1.0:
            self.learner.scale_own_move(action.damping)
        return result, changed

    def _after_training(self, now: int, outcome: tuple[TrainResult, set[Part]]) -> list[do.Action]:
        self._trained, changed = outcome
        return self.protocol.trained(now, changed, self.outbox.data_budget())

    def _on_apply(self, action: do.Apply) -> None:
        self._learn(partial(self._mix, action.mixes))

    def _mix(self, mixes: tuple[Mix, ...]) -> None:
        """own <- (1 - sum w) own + sum w * copy, in the order of the operations and their terms."""
        for mix in mixes:
            key = BlockKey(*mix.part.block)
            if not self.learner.has(key):
                continue
            own = self.learner.read(key, mix.part.group)
            mixed = own * (1.0 - sum(weight for weight, _ in mix.terms))
            for weight, values in mix.terms:
                if values is not None:
                    mixed += weight * values
            if not mixed.equal(own):
                self.learner.write(key, mix.part.group, mixed)
                self._changed.add(mix.part)

    def _on_add_block(self, action: do.AddBlock) -> None:
        self._learn(partial(self.learner.add_block, BlockKey(*action.key), action.slot))

    def _on_own_block(self, action: do.OwnBlock) -> None:
        carry = None if action.carry is None else BlockKey(*action.carry)
        self._learn(partial(self.learner.set_own, BlockKey(*action.key), action.slot, carry))

    def _on_drop_block(self, action: do.DropBlock) -> None:
        self.outbox.purge(action.key, action.reason)
        self.inbox.purge(action.key)
        key = action.key
        self._changed = {p for p in self._changed if p.block != key}
        self._learn(partial(self._delete, BlockKey(*key)), partial(self._deleted, key=key))

    def _delete(self, key: BlockKey) -> Receipt | None:
        return self.learner.delete_block(key) if self.learner.has(key) else None

    def _deleted(self, now: int, receipt: Receipt | None, key: Key) -> list[do.Action]:
        if receipt is not None:
            before, after = receipt.sha256_before, receipt.sha256_after
            self._event(
                "deleted",
                peer=key.device,
                incarnation=key.incarnation,
                sha256_before=before,
                sha256_after=after,
            )
        return []

    def _on_snapshot(self, action: do.Snapshot) -> None:
        own = self.protocol.own
        name = f"{action.round:05d}-{action.tag.replace(':', '-')}.safetensors"
        meta = {"device": self.spec.id, "round": str(action.round), "tag": action.tag}
        meta["incarnation"] = str(own.incarnation if own else 0)
        settled = ":" in action.tag  # at an event, local steps may be under way: show the last mixed state
        path = self.recorder.folder / "snapshots" / name
        self._learn(partial(self.learner.snapshot, path, meta, settled))

    def _on_export(self, action: do.Export) -> None:
        path = Path(self.spec.out) / "adapters" / self.spec.id
        self._learn(partial(self.learner.export, path), self._exported)

    def _exported(self, now: int, sha256: str) -> list[do.Action]:
        self._event("exported", adapter_sha256=sha256)
        return []

    # -- the network -----------------------------------------------------------------------------------
    def _on_connect(self, action: do.Connect) -> None:
        self.links.connect(action.peer, action.address)

    def _on_disconnect(self, action: do.Disconnect) -> None:
        self.outbox.forget(action.peer)
        self.inbox.forget(action.peer)
        self.links.disconnect(action.peer)

    def _on_meet(self, action: do.Meet) -> None:
        self.outbox.forget(action.alias)
        self.links.disconnect(action.alias)
        self.accounts.rename(action.alias, action.peer)

    def _on_tell(self, action: do.Tell) -> None:
        self.outbox.tell(action.peer, self._incarnation(), action.message)

    async def _on_publish(self, action: do.Publish) -> None:
        payloads = await self._loop.run_in_executor(self.worker, self.outbox.encode, action)
        self.outbox.publish(action, payloads, self._incarnation())

    def _on_farewell(self, action: do.Farewell) -> None:
        self.outbox.farewell(action.peer, self._incarnation(), action.reason)

    def _incarnation(self) -> int:
        return self.protocol.own.incarnation if self.protocol.own else 0

    # -- records ---------------------------------------------------------------------------------------
    def _event(self, event: str, **fields: object) -> None:
        self.recorder.event(self.now(), self.protocol.round, event, fields)

    def _on_log(self, action: do.Log) -> None:
        self._event(action.event, **action.fields)

    def _on_round_done(self, action: do.RoundDone) -> None:
        seconds = self.recorder.seconds
        record: dict[str, object] = {
            "round": action.round,
            "phase": action.phase,
            "t0_s": seconds(action.start_ns),
            "t1_s": seconds(action.end_ns),
            "loss": self._trained.loss,
            "steps": self._trained.steps,
            "train_s": self._trained.seconds,
            "wait_s": (action.end_ns - action.trained_ns) / 1e9,
            "weights": action.weights,
            "withheld": action.withheld,
            "members": list(action.members),
            "granted_bytes": self.outbox.quota.budget_bytes,
            "spent_bytes": self.outbox.quota.spent,
            "links": self.accounts.to_dict(),
        }
        self._learn(lambda: self.recorder.metrics({**record, "norms": self.learner.norms()}))

    def _on_exit(self, action: do.Exit) -> None:
        self.exit = self.exit or action
        if action.code:
            log.error("%s: %s", self.spec.id, action.reason)

    async def _drain(self) -> None:
        """Finish what was begun: the learner's queue, the outgoing queue, the sockets."""
        await self._loop.run_in_executor(self.worker, _nothing, 0)
        while not self.events.empty():
            event = self.events.get_nowait()
            if getattr(event, "func", None) != self._signal:
                await self._do([a for a in event(self.now()) if isinstance(a, do.Log)])
        await self.outbox.drained(FLUSH_S)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._event(
            "finished",
            reason=self.exit.reason if self.exit else "",
            links=self.accounts.to_dict(),
            train_cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
            peak_rss_bytes=usage.ru_maxrss * 1024,
            violations=self.outbox.quota.violations,
            security_events=dict(self.links.security_events),
        )


def _nothing(now: int) -> list[do.Action]:
    return []


def _raise_if_failed(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
