"""Joining a run that goes on: fetch the blocks from a neighbour, then train from the network's next round."""

from __future__ import annotations

from itertools import groupby

from coordinator_free.averaging.mixing import Arrival
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.actions import Apply
from peers.protocol.connections import Connections
from peers.protocol.exchange import ZERO
from peers.protocol.rounds import Rounds
from peers.protocol.state import SECOND, DeviceState, Phase
from transport.wire.messages import Manifest, Request

MEET_NS = SECOND // 4  # how long a joiner waits for its neighbours' hellos before it asks those who are there


class Joining:
    """Asks neighbours until a copy of every block is here: each for another block, so that no link and no
    helper's budget has to carry them all."""

    def __init__(self, state: DeviceState, connections: Connections, rounds: Rounds) -> None:
        self._state, self._connections, self._rounds = state, connections, rounds
        self._asked = 0
        self._helpers: dict[Part, str] = {}  # who was asked last for what

    def ask(self, now: int) -> None:
        """Ask for all that is missing; others than before if that has taken too long."""
        state = self._state
        if not self._joins():
            return
        missing, helpers = state.missing(), self._there()
        if not missing or self._asked >= 2 * len(helpers):  # what nobody has sent in two rounds, nobody has
            self._enter(now)
            return
        self._ask_for(missing, helpers)
        self._asked += 1
        state.timers["ask"] = now + int(state.config.round.deadline_s * SECOND)

    def try_ask(self, now: int) -> None:
        """Once the neighbours are met; then for what a helper that has gone has not sent, and for new blocks.
        Once nothing is missing any more, train."""
        state = self._state
        if not self._joins():
            return
        if "ask" not in state.timers:
            state.timers["ask"] = now + MEET_NS
        if not self._asked:
            if self._connections.met_neighbours():
                self.ask(now)
            return
        missing, active, helpers = state.missing(), state.members.active(), self._there()
        unasked = [part for part in missing if self._helpers.get(part) not in active]
        if not missing:
            self._enter(now)
        elif unasked and helpers:
            self._ask_for(unasked, helpers)

    def _ask_for(self, parts: list[Part], helpers: list[str]) -> None:
        """A block's owner first, which has the newest of it; else, and later, one after the other."""
        state = self._state
        for number, (key, found) in enumerate(groupby(parts, key=lambda part: part.block)):
            of_block = list(found)
            last, turn = self._helpers.get(of_block[0]), number + self._asked
            helper = helpers[turn % len(helpers)]
            if helper == last:
                helper = helpers[(turn + 1) % len(helpers)]
            if last is None and key.device in helpers:
                helper = key.device
            self._helpers.update(dict.fromkeys(of_block, helper))
        for helper in sorted({self._helpers[part] for part in parts}):
            wanted = [part for part in parts if self._helpers[part] == helper]
            items = [(p.block.device, p.block.incarnation, p.group, ZERO) for p in wanted]
            state.tell(helper, Request(items, state.round))

    def _there(self) -> list[str]:
        """Who may be asked: one that joins itself only where there is nobody else."""
        state = self._state
        active = state.members.active()
        there = [name for name in state.greeted() if name in active and not state.peers[name].done]
        return [name for name in there if active[name].since_round >= 0] or there

    def take(self, source: str, part: Part, copy: Arrival) -> None:
        """A block that was asked for."""
        self._state.act(Apply((self._state.exchange.adopt(source, part, copy),)))

    def heard(self, source: str, manifest: Manifest) -> None:
        """A block can be B = 0 at those who were asked for it: there is nothing to be sent then."""
        if not self._joins():
            return
        for device, incarnation, group, version, status in manifest.items:
            part = Part(BlockKey(device, incarnation), group)
            if (version, status) == (ZERO, "unchanged") and self._helpers.get(part) == source:
                self._state.exchange.zero.add(part)

    def wants(self, part: Part, cause: str) -> bool:
        """Whether a copy is to be taken over whole."""
        asked = cause == "transfer" and self._state.phase is Phase.JOIN
        return asked or part in self._state.exchange.unknown

    def _joins(self) -> bool:
        return self._state.phase is Phase.JOIN and self._state.own is not None

    def _enter(self, now: int) -> None:
        """All blocks are here: train from the network's next round on."""
        state = self._state
        assert state.own is not None
        state.timers.pop("ask", None)
        state.exchange.unknown |= set(state.missing())
        first = state.network_round + 1
        state.announce(state.members.amend(state.own, since_round=first))
        if first < state.config.round.count:
            self._rounds.begin(now, first)
        else:
            self._rounds.finish(now)
