"""Performs the actions of the protocol: one handler for each type of action. Runs in the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from peers.learning.local_steps import TrainResult
from peers.protocol import actions as do
from peers.protocol.phases import Phase
from peers.runtime.components import Components
from peers.runtime.event_queue import Event, Kind
from peers.runtime.futures import call_when_done
from peers.runtime.learner_thread import Diagnosed, Trained
from peers.runtime.recorder import metrics_of_round
from peers.runtime.run_checkpoints import RunCheckpoints
from peers.storage import checkpoint, leave_wishes
from peers.unlearning.deletion_receipt import DeletionReceipt

log = logging.getLogger("unweft")


class ActionPerformer:
    """`exit`: the first Exit that the protocol or a failure caused; None while the device runs."""

    def __init__(self, components: Components) -> None:
        c = self._c = components
        self.exit: do.Exit | None = None
        self._busy_until_ns = 0  # virtual time at which the queued work of the learner ends
        self._trained = TrainResult((), 0.0)
        path = checkpoint.path_of(Path(c.spec.out), c.spec.id)
        config, last = c.spec.config.checkpoint, c.spec.config.round.count - 1
        self._checkpoints = RunCheckpoints(config, path, c.learner_thread, lambda: c.protocol.closed, last)
        self._handlers: dict[type[do.Action], Callable[[Any], object]] = {
            do.Connect: lambda action: c.sender.connect(action.peer, action.address, c.clock.now()),
            do.Disconnect: self._disconnect,
            do.Meet: self._meet,
            do.Tell: self._tell,
            do.Farewell: lambda action: c.sender.send_bye(action, c.incarnation),
            do.Train: self._train,
            do.Diagnose: self._diagnose,
            do.MeasureInputs: self._measure_inputs,
            do.KeepInputs: self._keep_inputs,
            do.Apply: lambda action: c.learner_thread.mix(action.mixes, action.closes),
            do.AddBlock: c.learner_thread.add_block,
            do.OwnBlock: c.learner_thread.own_block,
            do.DropBlock: self._drop_block,
            do.Confirmed: c.receipts.confirmed,
            do.Snapshot: lambda action: c.learner_thread.snapshot(action, c.spec.id, c.incarnation),
            do.Log: lambda action: c.events.record(c.clock.now(), action.event, **action.fields),
            do.RoundDone: self._round_done,
            do.Export: self._export,
            do.SaveLeave: self._save_leave,
            do.Exit: self._exit,
        }

    async def perform(self, actions: list[do.Action], source: str | None = None) -> None:
        """Perform the actions in order. After the last round control belongs to no round's budget.

        `source`: the peer whose message led to them. A Tell or Connect that fails then is its fault
        (delivery.py): the peer is disconnected, and the other actions are performed.
        """
        if self._c.protocol.phase in (Phase.FINISH, Phase.GONE):
            self._c.sender.quota.end_rounds()
        for action in actions:
            if isinstance(action, do.Publish):
                await self._publish(action)
            elif source is not None and isinstance(action, do.Tell | do.Connect):
                await self._perform_for(source, action)
            else:
                self._handlers[type(action)](action)

    async def _perform_for(self, source: str, action: do.Tell | do.Connect) -> None:
        try:
            self._handlers[type(action)](action)
        except Exception as error:  # the barrier: no message ends the device
            await self.perform(self._c.delivery.on_answer_fault(self._c.clock.now(), source, error))

    # -- the network -----------------------------------------------------------------------------------
    async def _publish(self, action: do.Publish) -> None:
        payloads = self._c.encoder.cached(action)
        if payloads is None:
            encoding = self._c.learner_thread.submit(partial(self._c.encoder.encode, action))
            payloads = await asyncio.wrap_future(encoding)
        self._c.sender.publish(action, payloads, self._c.incarnation)

    def _tell(self, action: do.Tell) -> None:
        c = self._c
        c.sender.send_control(action.peer, c.incarnation, action.message)
        if c.clock_differences is None:
            return
        with_it = c.clock_differences.told_with(action, c.clock.now())
        if with_it is not None:
            c.sender.send_control(with_it.peer, c.incarnation, with_it.message)

    def _disconnect(self, action: do.Disconnect) -> None:
        self._c.sender.disconnect(action.peer)
        if self._c.clock_differences is not None:
            self._c.clock_differences.forget_peer(action.peer)
        self._c.learner_thread.forget_copies_of(action.peer)
        self._c.delivery.forget_peer(action.peer)

    def _meet(self, action: do.Meet) -> None:
        self._c.sender.disconnect(action.alias)
        self._c.accounts.rename(action.alias, action.peer)

    # -- the learner -----------------------------------------------------------------------------------
    def _train(self, action: do.Train) -> None:
        self._c.sender.start_round(action.round, self._c.protocol.members.alive(), self._c.clock.now())
        training = self._c.learner_thread.train(action)
        self._queue_result(training, action.steps, partial(self._on_trained, training=training))

    def _on_trained(self, now: int, training: Future[Trained]) -> list[do.Action]:
        self._trained, changed, distances, near = training.result()
        sender = self._c.sender
        supply, outages = sender.supply(distances), frozenset(sender.outages)
        return self._c.protocol.trained(now, changed, sender.data_budget(), supply, outages, near)

    def _diagnose(self, action: do.Diagnose) -> None:
        measuring = self._c.learner_thread.diagnose(action)
        tried = sum(1 + max(a.steps for a in settings.values()) for settings in action.trials.values())
        event = partial(self._on_diagnosed, epoch=action.round, measuring=measuring)
        self._queue_result(measuring, 1 + tried, event)

    def _on_diagnosed(self, now: int, epoch: int, measuring: Future[Diagnosed]) -> list[do.Action]:
        values, found = measuring.result()
        self._c.events.record(now, "diagnosis", epoch=epoch, loss=found.loss, **found.cost._asdict())
        return self._c.protocol.diagnosed(now, epoch, values)

    def _measure_inputs(self, action: do.MeasureInputs) -> None:
        """As the measurement of a Fisher basis, this takes no virtual time."""
        measuring = self._c.learner_thread.second_moments(action)

        def measured(now: int) -> list[do.Action]:
            return self._c.protocol.inputs_measured(now, measuring.result())

        self._queue_result(measuring, 0, measured)

    def _keep_inputs(self, action: do.KeepInputs) -> None:
        keeping = self._c.learner_thread.know_inputs(action)
        of: dict[str, object] = {"peer": action.source.device}
        self._c.events.record_when_done(keeping, "inputs_refused", lambda kept: None if kept else of)

    def _queue_result(self, work: Future[Any], steps: int, event: Event) -> None:
        """Schedule `event` for when the queued work ends.

        In virtual time the work takes as long as `steps` local steps after the work that was queued before.
        """
        c = self._c
        if c.virtual is None:
            call_when_done(work, lambda _: self._queue_now(event))
            return
        start = max(c.clock.now(), self._busy_until_ns)
        self._busy_until_ns = start + steps * c.spec.config.compute.step_ns(c.spec.id)
        c.queue.add(self._busy_until_ns, Kind.LEARNER, event, ready=work)

    def _queue_now(self, event: Event) -> None:
        self._c.queue.add(self._c.clock.now(), Kind.LEARNER, event)
        self._c.clock.poke()

    def _drop_block(self, action: do.DropBlock) -> None:
        c, key = self._c, action.key
        c.sender.purge(key, action.reason)
        c.encoder.purge(key)
        c.delivery.drop_block(key)
        if action.refit and c.protocol.own is not None:
            c.encoder.drop_cached(c.protocol.own.key)
        of = {"peer": key.device, "incarnation": key.incarnation}

        def deleted(receipt: DeletionReceipt | None) -> dict[str, object] | None:
            return None if receipt is None else {**of, **asdict(receipt)}

        c.events.record_when_done(c.receipts.drop_block(action), "deleted", deleted)
        self._checkpoints.on_block_dropped()

    # -- files and records -----------------------------------------------------------------------------
    def _save_leave(self, action: do.SaveLeave) -> None:
        leave_wishes.write(self._c.recorder.folder, action.records, action.confirmed)
        self._checkpoints.on_leave()

    def _export(self, action: do.Export) -> None:
        c = self._c
        folder = Path(c.spec.out) / "adapters" / c.spec.id
        exporting = c.learner_thread.export(folder)
        c.receipts.exported(exporting, folder)
        self._checkpoints.on_export(action.run_over)
        c.events.record_when_done(exporting, "exported", lambda sha256: {"adapter_sha256": sha256})

    def _round_done(self, action: do.RoundDone) -> None:
        c = self._c
        if c.virtual is not None:
            c.virtual.round = action.round
        c.learner_thread.record_metrics(
            {
                **metrics_of_round(action, self._trained, c.recorder.seconds),
                "granted_bytes": c.sender.quota.budget_bytes,
                "spent_bytes": c.sender.quota.spent,
                "spent_total_bytes": c.sender.quota.spent_total,
                "links": c.accounts.to_dict(),
                "arrivals": c.reception.arrivals.take(c.recorder.seconds),
            }
        )
        self._checkpoints.on_round(action.round)

    def _exit(self, action: do.Exit) -> None:
        self.exit = self.exit or action
        if action.code:
            self._c.events.record(self._c.clock.now(), "failed", reason=action.reason)
            log.error("%s: %s", self._c.spec.id, action.reason)
