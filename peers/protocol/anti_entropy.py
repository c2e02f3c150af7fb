"""Anti-entropy: periodic work that repairs what single messages missed.

It repeats hellos, exchanges whole tables with random members, and tries evicted devices again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from coordinator_free.identifiers import BlockKey
from peers.protocol.connections import Connections
from peers.protocol.membership import MembershipProtocol
from peers.protocol.replicas import Replicas
from peers.protocol.state import SECOND, DeviceState
from transport.wire.messages import Gossip


class AntiEntropy:
    """Periodic work, once a probe period or less often.

    `neighbours()`: the neighbours in the graphs of this round, whose links stay open.
    """

    def __init__(
        self,
        state: DeviceState,
        connections: Connections,
        membership: MembershipProtocol,
        replicas: Replicas,
        neighbours: Callable[[], Iterable[str]],
    ) -> None:
        self._state, self._connections, self._membership = state, connections, membership
        self._replicas, self._neighbours = replicas, neighbours
        config = state.config
        self._draw = random.Random(f"{config.seed}/{state.me.device}/upkeep")
        self._period_ns = int(config.membership.probe_s * SECOND)
        self._push_pull_ns = int(config.membership.push_pull_s * SECOND)
        self._reconnect_ns = int(config.membership.reconnect_every_s * SECOND)
        self._reconnect_until_ns = int(config.membership.reconnect_s * SECOND)
        self._evicted: dict[BlockKey, int] = {}  # ns: when each evicted block was first seen as evicted

    def start(self, now: int) -> None:
        """Set the timers. Each device draws its own offset, so that devices do not act at the same time."""
        timers = self._state.timers
        timers["upkeep"] = now + self._draw.randint(1, self._period_ns)
        timers["push_pull"] = now + self._draw.randint(1, self._push_pull_ns)
        timers["reconnect"] = now + self._draw.randint(1, self._reconnect_ns)

    def on_probe(self, now: int) -> None:
        """Do the upkeep with a probe if it is due in half a period: a wake-up costs more than its work."""
        if now < self._state.timers.get("upkeep", now) <= now + self._period_ns // 2:
            self.on_upkeep(now)

    def on_upkeep(self, now: int) -> None:
        """Repair links, tell deletions, and claim a slot if this device waits for one.

        Probes are one period apart while the device is healthy, so the next probe comes first.
        """
        state = self._state
        state.timers["upkeep"] = now + self._period_ns * 3 // 2
        self._connections.greet_again(now)
        self._connections.connect_wanted(now)
        self._connections.close_idle(now, self._neighbours)
        self._replicas.tell_news()
        self._membership.tell_unconfirmed()
        self._membership.try_claim(now)
        if state.own is None:  # ask for tables again: the answers may have been lost
            state.tell_all(Gossip([], True, state.round))

    def on_push_pull(self, now: int) -> None:
        """Exchange tables with a random member, with or without a link: gossip may have missed records."""
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
        """Try to reach one evicted device: a partition may have ended.

        Probability: evicted members / live members, as in serf. All devices together try each evicted device
        about once in a period.
        """
        state = self._state
        state.timers["reconnect"] = now + self._reconnect_ns
        evicted = state.members.evicted()
        since = {r.key: self._evicted.get(r.key, now) for r in evicted.values()}
        self._evicted = since
        fresh = [d for d, r in evicted.items() if now - since[r.key] <= self._reconnect_until_ns]
        others = len({*state.members.active()} - {state.me.device})
        if fresh and self._draw.random() * max(others, 1) < len(fresh):
            self._connections.reach(now, self._draw.choice(fresh))
