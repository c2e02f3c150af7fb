"""What a device does now and then for the network to stay one: hellos again, whole tables, those given up."""

from __future__ import annotations

import random

from coordinator_free.identifiers import BlockKey
from peers.protocol.connections import Connections
from peers.protocol.membership import MembershipProtocol
from peers.protocol.replicas import Replicas
from peers.protocol.state import SECOND, DeviceState
from transport.wire.messages import Gossip


class AntiEntropy:
    """Everything that is not urgent, once a probe period or less often."""

    def __init__(
        self, state: DeviceState, connections: Connections, membership: MembershipProtocol, replicas: Replicas
    ) -> None:
        self._state, self._connections, self._membership, self._replicas = (
            state,
            connections,
            membership,
            replicas,
        )
        config = state.config
        self._draw = random.Random(f"{config.seed}/{state.me.device}/upkeep")
        self._period_ns = int(config.membership.probe_s * SECOND)
        self._push_pull_ns = int(config.membership.push_pull_s * SECOND)
        self._reconnect_ns = int(config.membership.reconnect_every_s * SECOND)
        self._given_up_ns = int(config.membership.reconnect_s * SECOND)
        self._evicted: dict[BlockKey, int] = {}  # since when they are

    def start(self, now: int) -> None:
        """Each device in a phase of its own, so that they do not all do it at once."""
        timers = self._state.timers
        timers["upkeep"] = now + self._draw.randint(1, self._period_ns)
        timers["push_pull"] = now + self._draw.randint(1, self._push_pull_ns)
        timers["reconnect"] = now + self._draw.randint(1, self._reconnect_ns)

    def on_timer(self, now: int) -> None:
        state = self._state
        state.timers["upkeep"] = now + self._period_ns
        self._connections.greet_again(now)
        self._connections.connect_wanted(now)
        self._connections.close_idle(now)
        self._replicas.tell_news()
        self._membership.try_claim(now)
        if state.own is None:  # the members' answer may have been lost
            state.tell_all(Gossip([], True, state.round))

    def on_push_pull(self, now: int) -> None:
        """Tables with a random member, linked or not: what gossip may have missed for good is noticed."""
        state = self._state
        state.timers["push_pull"] = now + self._push_pull_ns
        others = sorted({*state.members.active()} - {state.me.device})
        if not others:
            return
        peer = self._draw.choice(others)
        linked = peer in state.peers and state.peers[peer].greeted
        if linked and state.peers[peer].digest != state.members.digest():
            state.tell_table(now, peer, reply=True)
        elif not linked:
            self._connections.reach(now, peer)

    def on_reconnect(self, now: int) -> None:
        """Try one of those given up: a partition may have ended. All devices together try each about once.

        As serf does: with the probability that is the number of those given up by that of the living.
        """
        state = self._state
        state.timers["reconnect"] = now + self._reconnect_ns
        evicted = state.members.evicted()
        since = {r.key: self._evicted.get(r.key, now) for r in evicted.values()}
        self._evicted = since
        fresh = [d for d, r in evicted.items() if now - since[r.key] <= self._given_up_ns]
        others = len({*state.members.active()} - {state.me.device})
        if fresh and self._draw.random() * max(others, 1) < len(fresh):
            self._connections.reach(now, self._draw.choice(fresh))
