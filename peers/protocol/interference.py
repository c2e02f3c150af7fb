"""Second moments of inputs between neighbours, for interference-aware steps (learning/foreign_inputs.py).

After an event each device measures its inputs once, without the leaver's block, and tells each neighbour the
moments in the bases of this neighbour's block. A false message changes the directions of the receiver's steps
and nothing else: the loss and the gradients stay the receiver's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from coordinator_free.identifiers import BlockKey
from peers.protocol.actions import Drop, KeepInputs, MeasureInputs
from peers.protocol.phases import Phase
from peers.protocol.state import DeviceState
from transport.wire.limits import MAX_INPUTS
from transport.wire.messages import Inputs

RUNNING = (Phase.TRAIN, Phase.WAIT)


class Interference:
    """The exchange of moments. It does nothing unless `correction.interference` is set."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._events_seen = state.events

    def notice_event(self) -> None:
        """After a new event of a run with interference-aware steps: measure."""
        state = self._state
        if not state.config.correction.interference or state.events == self._events_seen:
            return
        if state.own is None or state.phase not in RUNNING:
            return
        self._events_seen = state.events
        keys = tuple(sorted(key for key in state.blocks if key.device in self._neighbours()))
        if keys:
            state.act(MeasureInputs(keys, state.round))

    def measured(self, values: Mapping[BlockKey, bytes]) -> None:
        """Tell each neighbour its values. Values that no message can hold are left out."""
        for key, packed in values.items():
            if len(packed) > MAX_INPUTS:
                self._state.log("inputs_too_large", peer=key.device, bytes=len(packed))
            elif key in self._state.blocks and key.device in self._neighbours():
                self._state.tell(key.device, Inputs(key.device, key.incarnation, packed))

    def on_inputs(self, now: int, source: str, message: Inputs) -> None:
        """Keep the moments of a neighbour, if they are about the own block and the neighbour is a member."""
        state = self._state
        theirs = state.members.alive().get(source)
        key = BlockKey(message.device, message.incarnation)
        if state.own is None or key != state.own.key or theirs is None or theirs.key not in state.blocks:
            state.act(Drop("unknown"))
        elif state.config.correction.interference:
            state.act(KeepInputs(theirs.key, message.values))

    def _neighbours(self) -> set[str]:
        """Greeted neighbours in the learning graph of the scenario."""
        graph = self._state.graph(self._state.training())
        me = self._state.me.device
        near = set(graph[me]) if me in graph else set()
        return near & set(self._state.greeted())
