"""Connections: who is greeted, who is refused, whom this device links to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peers.actions import Connect, Disconnect, Drop, Exit, Meet
from peers.state import SECOND, DeviceState, Peer
from transport.codec import CODECS
from transport.messages import Hello, Refuse

Difference = Callable[[dict[str, Any]], str | None]
MAX_REASON = 512  # characters of a refusal


class Meeting:
    """Greets and is greeted. `difference(fingerprint)`: what another's bases differ in; None: nothing."""

    def __init__(self, state: DeviceState, fingerprint: dict[str, Any], difference: Difference) -> None:
        self._state, self._fingerprint, self._difference = state, fingerprint, difference
        config = state.config
        # names are claims, and each takes sockets: aliases of seeds, everyone, and as many who have gone
        self._most_peers = len(state.me.seeds) + 2 * config.adapter.max_devices
        self._required = [
            f"mixing:{config.mixing.mode}",
            f"clock:{config.clock}",
            f"codec:{config.radio.codec}",
        ]
        self._capabilities = sorted({*self._required, *(f"codec:{codec}" for codec in CODECS)})

    def call_seeds(self, now: int) -> bool:
        """Greet the seeds under aliases, since their names are not known yet. False: there are none."""
        me = self._state.me
        seeds = [seed for seed in me.seeds if seed != me.address]
        for index, address in enumerate(seeds):
            self.connect(f"?{index}", address, now)
        return bool(seeds)

    def connect(self, peer: str, address: str, now: int) -> None:
        self._state.peers[peer] = Peer(address, now, greet_again_ns=now + SECOND)
        self._state.act(Connect(peer, address))
        self._state.tell(peer, self._hello(reply=True))

    def greet_again(self, now: int) -> None:
        """A hello can be lost on the air: repeat it where it was not answered, after ever longer pauses."""
        for name, peer in sorted(self._state.peers.items()):
            if not peer.greeted and now >= peer.greet_again_ns:
                peer.greet_pause_ns *= 2
                peer.greet_again_ns = now + peer.greet_pause_ns
                self._state.tell(name, self._hello(reply=True))

    def greet_all(self) -> None:
        """Introduce this device anew on every link that it has."""
        for name in sorted(self._state.peers):
            self._state.tell(name, self._hello(reply=True))

    def connect_neighbours(self, now: int) -> None:
        """Have a link to everyone who is a neighbour now."""
        state = self._state
        alive = state.members.alive()
        if state.me.device not in alive:
            return
        for peer in sorted(state.graph(alive)[state.me.device]):
            if peer not in state.peers:
                self.connect(peer, alive[peer].address, now)

    def met_neighbours(self) -> bool:
        state = self._state
        around = state.graph(state.members.alive())[state.me.device]
        return all(peer in state.peers and state.peers[peer].greeted for peer in around)

    def disconnect(self, peer: str) -> None:
        if self._state.peers.pop(peer, None) is not None:
            self._state.act(Disconnect(peer))
        self._state.exchange.forget_peer(peer)

    def on_hello(self, now: int, source: str, hello: Hello) -> None:
        state = self._state
        difference = self._difference(hello.fingerprint) or self._incapable(hello.capabilities)
        if source == state.me.device:
            difference = f"another device runs under the id {source}"
        known = state.peers.get(source)
        if known is None and len(state.peers) >= self._most_peers:
            state.act(Drop("crowded"))
            return
        if known is None or known.address != hello.address:
            self.connect(source, hello.address, now)
        if difference is not None:
            if known is None or not known.refused:  # a line each would let anybody fill the disk
                state.log("refused", peer=source, reason=difference)
            state.peers[source].refused = True
            state.tell(source, Refuse(difference[:MAX_REASON]))
            state.act(Drop("refused"))
            return
        self._name_aliases(source, hello.address)
        state.network_round = max(state.network_round, min(hello.round, state.config.round.count - 1))
        peer = state.peers[source]
        if hello.reply:
            state.exchange.untold(source)
        peer.greeted, peer.heard_ns = True, now
        if hello.reply:
            state.tell(source, self._hello(reply=False))
        # tombstones before any data: the whole table goes first on every (re)connection (method 9)
        state.tell(source, state.gossip(state.members))

    def on_refuse(self, source: str, refuse: Refuse) -> None:
        """Before its first round a device whose bases do not fit has nothing to stay for."""
        state = self._state
        if source not in state.peers:
            state.act(Drop("stranger"))
            return
        state.log("refused", by=source, reason=refuse.reason)
        if state.own is None or state.round < 0:
            state.act(Exit(1, f"{source} refused {state.me.device}: {refuse.reason}"))

    def _name_aliases(self, source: str, address: str) -> None:
        peers = self._state.peers
        for alias in [name for name, peer in peers.items() if name[0] == "?" and peer.address == address]:
            del peers[alias]
            self._state.act(Meet(alias, source))

    def _hello(self, reply: bool) -> Hello:
        return Hello(self._state.me.address, self._fingerprint, reply, self._capabilities, self._state.round)

    def _incapable(self, theirs: list[str]) -> str | None:
        """What this device does and the other does not; None: nothing."""
        missing = sorted(set(self._required) - set(theirs))
        return f"it lacks {', '.join(missing)}" if missing else None
