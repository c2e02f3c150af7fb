"""Joining a run that has begun: fetch all blocks from neighbours, then train from the next round."""

from __future__ import annotations

from itertools import groupby

from coordinator_free.averaging.mixing import Arrival
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.actions import Apply
from peers.protocol.connections import Connections
from peers.protocol.exchange import ZERO
from peers.protocol.phases import Phase
from peers.protocol.rounds import Rounds
from peers.protocol.state import SECOND, DeviceState
from transport.wire.limits import MAX_WISHES
from transport.wire.messages import Manifest, Request

MEET_NS = SECOND // 4  # longest wait for the neighbours' hellos before the first requests


class Joining:
    """Requests a copy of every block. The requests are spread over the neighbours, so that no link and no
    budget has to carry all blocks. A helper is a neighbour of which a block was requested."""

    def __init__(self, state: DeviceState, connections: Connections, rounds: Rounds) -> None:
        self._state, self._connections, self._rounds = state, connections, rounds
        self._attempts = 0  # how often all missing parts were requested
        self._helpers: dict[Part, str] = {}  # of which each part was requested last

    def on_ask(self, now: int) -> None:
        """Request all missing parts; after a timeout, from other helpers than before."""
        state = self._state
        if not self._joins():
            return
        missing, helpers = state.missing(), self._candidates()
        # If two requests to every helper brought no copy, there is none.
        if not missing or self._attempts >= 2 * len(helpers):
            self._begin(now)
            return
        self._request(missing, helpers)
        self._attempts += 1
        state.timers["ask"] = now + int(state.config.round.deadline_s * SECOND)

    def try_ask(self, now: int) -> None:
        """After every event: request the blocks once the neighbours are met, and train once all are here.

        New blocks, and blocks whose helper has gone, are requested at once.
        """
        state = self._state
        if not self._joins():
            return
        if "ask" not in state.timers:
            state.timers["ask"] = now + MEET_NS
        if not self._attempts:
            if self._connections.met_neighbours():
                self.on_ask(now)
            return
        missing, active, helpers = state.missing(), state.members.active(), self._candidates()
        unasked = [part for part in missing if self._helpers.get(part) not in active]
        if not missing:
            self._begin(now)
        elif unasked and helpers:
            self._request(unasked, helpers)

    def _request(self, parts: list[Part], helpers: list[str]) -> None:
        """Request parts, each block from one helper."""
        for number, (key, found) in enumerate(groupby(parts, key=lambda part: part.block)):
            of_block = list(found)
            helper = self._next_helper(key, self._helpers.get(of_block[0]), number + self._attempts, helpers)
            self._helpers.update(dict.fromkeys(of_block, helper))
        for helper in sorted({self._helpers[part] for part in parts}):
            wanted = [part for part in parts if self._helpers[part] == helper]
            items = [(p.block.device, p.block.incarnation, p.group, ZERO) for p in wanted]
            for start in range(0, len(items), MAX_WISHES):
                self._state.tell(helper, Request(items[start : start + MAX_WISHES], self._state.round))

    def _next_helper(self, key: BlockKey, last: str | None, turn: int, helpers: list[str]) -> str:
        """The owner of a block first, since it holds the newest version; then the helpers in turn."""
        if last is None and key.device in helpers:
            return key.device
        helper = helpers[turn % len(helpers)]
        return helper if helper != last else helpers[(turn + 1) % len(helpers)]

    def _candidates(self) -> list[str]:
        """Possible helpers: the members that train; if there are none, the other joiners."""
        state = self._state
        active = state.members.active()
        there = [name for name in state.greeted() if name in active and not state.peers[name].done]
        return [name for name in there if active[name].since_round >= 0] or there

    def adopt_copy(self, source: str, part: Part, copy: Arrival) -> None:
        """Replace the own copy of a part by a neighbour's copy."""
        self._state.act(Apply((self._state.exchange.adopt(source, part, copy),)))

    def on_manifest(self, source: str, manifest: Manifest) -> None:
        """Note the requested parts that are B = 0 at their helper: no data is sent for them."""
        if not self._joins():
            return
        for device, incarnation, group, version, status in manifest.items:
            part = Part(BlockKey(device, incarnation), group)
            if (version, status) == (ZERO, "unchanged") and self._helpers.get(part) == source:
                self._state.exchange.zero.add(part)

    def replaces_copy(self, part: Part, cause: str) -> bool:
        """Whether an arriving copy replaces the own one instead of being mixed with it."""
        asked = cause == "transfer" and self._state.phase is Phase.JOIN
        return asked or part in self._state.exchange.unknown

    def _joins(self) -> bool:
        return self._state.phase is Phase.JOIN and self._state.own is not None

    def _begin(self, now: int) -> None:
        """Train from the network's next round. Parts that are still missing count as unknown.

        A joiner that most neighbours have not greeted begins too early. It then follows them
        (rounds.py).
        """
        state = self._state
        assert state.own is not None
        state.timers.pop("ask", None)
        state.exchange.unknown |= set(state.missing())
        first = min(state.network_round, state.round_of_neighbours()) + 1
        state.announce(state.members.amend(state.own, since_round=first))
        if first < state.config.round.count:
            self._rounds.begin(now, first)
        else:
            self._rounds.finish(now)
