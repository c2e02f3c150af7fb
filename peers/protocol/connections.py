"""Connections: who is greeted, who is refused, whom this device links to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from coordinator_free.membership import overlay
from coordinator_free.membership.records import Status
from peers.protocol.actions import Connect, Disconnect, Drop, Exit, Farewell, Meet
from peers.protocol.send_allocation import codecs
from peers.protocol.state import SECOND, DeviceState, Peer, Phase
from transport.wire.messages import Bye, Hello, Refuse
from transport.wire.tensor_codec import CODECS

Difference = Callable[[dict[str, Any]], str | None]
MAX_REASON = 512  # characters of a refusal
LONGEST_PAUSE_NS = 32 * SECOND  # between two hellos to one who does not answer
_THERE = (Status.ALIVE, Status.FINISHED, Status.CRASHED, Status.WITHDRAWN)  # or may be


class Connections:
    """Greets and is greeted. `difference(fingerprint)`: what another's bases differ in; None: nothing."""

    def __init__(self, state: DeviceState, fingerprint: dict[str, Any], difference: Difference) -> None:
        self._state, self._fingerprint, self._difference = state, fingerprint, difference
        config = state.config
        # names are claims, and each takes sockets: aliases of seeds, everyone, and as many who have gone
        self._most_peers = len(state.me.seeds) + 2 * config.adapter.max_devices
        self._wanted: tuple[int, set[str]] = (-1, set())
        self.others_needed: Callable[[], Iterable[str]] = lambda: ()  # links that others asked for
        self._required = [
            f"mixing:{config.mixing.mode}",
            f"clock:{config.clock}",
            *(f"codec:{codec}" for codec in codecs(config.radio)),
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

    # -- whom to be linked to ------------------------------------------------------------------------
    def wanted(self) -> set[str]:
        """Neighbours in the learning graph and partners for probes and gossip (membership/overlay.py);
        not who has finished: nobody will answer there any more."""
        state, me = self._state, self._state.me.device
        if self._wanted[0] != state.members.changes:
            alive, active, chosen = state.members.alive(), state.members.active(), set()
            if me in alive:
                seed, links = state.config.seed, state.config.membership.links
                chosen = {*state.graph(alive)[me], *overlay.partners(me, tuple(active), seed, links)}
            self._wanted = state.members.changes, chosen & {*active} - {me}
        return self._wanted[1]

    def connect_wanted(self, now: int) -> None:
        """Have a link to everyone that is wanted."""
        active = self._state.members.active()
        for peer in sorted(self.wanted() - {*self._state.peers}):
            self.connect(peer, active[peer].address, now)

    def reach(self, now: int, peer: str) -> bool:
        """Have a link to a member for once, if there are not too many. Whether there is one now."""
        state = self._state
        if peer in state.peers:
            return True
        record = state.members.newest(peer)
        if record is None or record.status not in _THERE or len(state.peers) >= self._most_peers:
            return False
        self.connect(peer, record.address, now)
        return True

    def recall(self, now: int, source: str) -> bool:
        """Greet a member that talks to this device although they have no link, or have not met on it yet: its
        link may be older, or its hello lost. False: it is no member that could be there."""
        if source == self._state.me.device or not self.reach(now, source):
            return False
        record, peer = self._state.members.newest(source), self._state.peers[source]
        if record is None or record.status not in _THERE or peer.refused:
            return False
        if now >= peer.greet_again_ns:
            peer.greet_again_ns = now + SECOND
            self._state.tell(source, self._hello(reply=True))
        return True

    def met_neighbours(self) -> bool:
        state, alive = self._state, self._state.members.alive()
        if state.me.device not in alive:
            return False
        around = state.graph(alive)[state.me.device]
        return all(peer in state.peers and state.peers[peer].greeted for peer in around)

    # -- now and then --------------------------------------------------------------------------------
    def greet_again(self, now: int) -> None:
        """A hello can be lost on the air: repeat it where it was not answered, after ever longer pauses."""
        for name, peer in sorted(self._state.peers.items()):
            if not peer.greeted and now >= peer.greet_again_ns:
                peer.greet_pause_ns = min(2 * peer.greet_pause_ns, LONGEST_PAUSE_NS)
                peer.greet_again_ns = now + peer.greet_pause_ns
                self._state.tell(name, self._hello(reply=True))

    def close_idle(self, now: int) -> None:
        """Close the links that nothing needs, once they have been silent. Seeds are tried for ever."""
        state, idle_ns = self._state, int(self._state.config.membership.idle_s * SECOND)
        if state.phase not in (Phase.TRAIN, Phase.WAIT):
            return
        wanted = {*self.wanted(), *self.others_needed()}
        for name, peer in sorted(state.peers.items()):
            needed = name in wanted or name[0] == "?" or peer.refused or state.exchange.peer(name).wants
            if not needed and now - peer.heard_ns > idle_ns:
                self.disconnect(name)

    def reconcile(self, now: int, source: str, digest: bytes) -> None:
        """One that knows other members is told all; not more than once a period, news is under way too."""
        state, peer = self._state, self._state.peers[source]
        peer.digest = digest
        period_ns = int(state.config.membership.probe_s * SECOND)
        if digest != state.members.digest() and now - peer.table_ns >= period_ns:
            state.tell_table(now, source)

    def disconnect(self, peer: str) -> None:
        if self._state.peers.pop(peer, None) is not None:
            self._state.act(Disconnect(peer))
        self._state.exchange.forget_peer(peer)

    # -- hellos --------------------------------------------------------------------------------------
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
        peer.done = peer.finished = peer.parting = False  # who has started again is another
        peer.dismissed = peer.silent = False
        if hello.reply:
            state.tell(source, self._hello(reply=False))
        # tombstones before any data: the whole table goes first on every (re)connection (method 9)
        state.tell_table(now, source)
        if state.phase is Phase.FINISH:
            state.act(Farewell(source, "finished"))

    def part(self, device: str) -> None:
        """A device leaves or retires: nobody waits for it, its link closes with its goodbye or once idle."""
        peer = self._state.peers.get(device)
        if peer is not None:
            peer.done = peer.parting = True
            self._state.exchange.forget_peer(device)

    def on_bye(self, source: str, bye: Bye) -> None:
        """One that leaves or retires is still watched where its word of it has not arrived."""
        peer = self._state.peers[source]
        if peer.parting:
            self.disconnect(source)
            return
        peer.done, peer.finished = True, bye.reason not in ("leave", "retire")
        peer.silent = bye.last

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
