"""Joining a run that goes on: fetch the blocks from a neighbour, then train from the network's next round."""

from __future__ import annotations

from coordinator_free.mixing import Arrival, Part
from peers.actions import Apply
from peers.exchange import ZERO
from peers.rounds import Rounds
from peers.state import SECOND, DeviceState, State
from transport.messages import Request


class Joining:
    """Asks one neighbour after the other until a copy of every block is here."""

    def __init__(self, state: DeviceState, rounds: Rounds) -> None:
        self._state, self._rounds = state, rounds
        self._asked = 0
        self._helper = ""

    def ask(self, now: int) -> None:
        """Ask one neighbour for what is missing; another one if that takes too long."""
        state = self._state
        if not self._joins():
            return
        missing = state.missing()
        helpers = [name for name in state.greeted() if not state.peers[name].done]
        if not missing or self._asked >= 2 * len(helpers):  # what nobody has sent in two rounds, nobody has
            self._enter(now)
            return
        self._helper = helper = helpers[self._asked % len(helpers)]
        self._asked += 1
        items = [(p.block.device, p.block.incarnation, p.group, ZERO) for p in missing]
        state.tell(helper, Request(items, state.round))
        state.timers["ask"] = now + int(state.config.round.deadline_s * SECOND)

    def try_ask(self, now: int) -> None:
        """Once the slot is claimed, and again once the helper has gone: only for what has not come yet."""
        lost = self._helper and self._helper not in self._state.members.active()
        if self._joins() and (lost or "ask" not in self._state.timers):
            self.ask(now)

    def take(self, now: int, source: str, part: Part, copy: Arrival) -> None:
        """A block that was asked for."""
        state = self._state
        state.act(Apply((state.exchange.adopt(source, part, copy),)))
        if self._joins() and not state.missing():
            self._enter(now)

    def wants(self, part: Part, cause: str) -> bool:
        """Whether a copy is to be taken over whole."""
        asked = cause == "transfer" and self._state.phase is State.JOIN
        return asked or part in self._state.exchange.unknown

    def _joins(self) -> bool:
        return self._state.phase is State.JOIN and self._state.own is not None

    def _enter(self, now: int) -> None:
        """All blocks are here: train from the network's next round on."""
        state = self._state
        assert state.own is not None
        state.timers.pop("ask", None)
        state.exchange.unknown |= set(state.missing())
        first = state.network_round + 2
        state.announce(state.members.amend(state.own, since_round=first))
        if first < state.config.round.count:
            self._rounds.begin(now, first)
        else:
            self._rounds.finish(now)
