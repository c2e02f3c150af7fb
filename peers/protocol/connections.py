"""Connections: the hello exchange, refusals, and the choice of the devices that this device links to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from coordinator_free.membership.overlay import Overlay
from coordinator_free.membership.signed_records import Status
from coordinator_free.membership.table import split_names
from peers.protocol.actions import Connect, Disconnect, Drop, Exit, Farewell, Meet
from peers.protocol.phases import Phase
from peers.protocol.send_allocation import codecs
from peers.protocol.state import SECOND, DeviceState, Peer
from transport.wire.codec_names import CODECS
from transport.wire.limits import MAX_RECORDS
from transport.wire.messages import Bye, Hello, Refuse

Difference = Callable[[dict[str, Any]], str | None]
MAX_REASON = 512  # characters of a refusal
LONGEST_PAUSE_NS = 32 * SECOND  # between two hellos to a device that does not answer
IMPATIENT = 8  # probe periods after which a table goes to a peer though records still spread
_MAY_ANSWER = (Status.ALIVE, Status.FINISHED, Status.CRASHED, Status.WITHDRAWN)


class Connections:
    """The links of one device. `difference(fingerprint)`: how another's bases differ; None: not at all."""

    def __init__(self, state: DeviceState, fingerprint: dict[str, Any], difference: Difference) -> None:
        self._state, self._fingerprint, self._difference = state, fingerprint, difference
        config = state.config
        # A device id is only a claim, and each link takes sockets. The bound has room for the aliases of the
        # seeds, all members, and as many members that have gone.
        self._most_peers = len(state.me.seeds) + 2 * config.adapter.max_devices
        self._period_ns = int(config.membership.probe_s * SECOND)
        self._pause_ns = self._period_ns // 4  # between answers to one peer's hellos
        self._wanted: tuple[int, set[str]] = (-1, set())  # cache of `wanted`, by version of the table
        self._overlay = Overlay(config.seed, config.membership.links)
        self._required = [
            f"mixing:{config.mixing.mode}",
            f"clock:{config.clock}",
            *(f"codec:{codec}" for codec in codecs(config.radio)),
            *([f"run:{state.me.run}"] if state.me.run else []),
            *(["reports:masked"] if config.correction.masked else []),
        ]
        self._capabilities = sorted({*self._required, *(f"codec:{codec}" for codec in CODECS)})

    def call_seeds(self, now: int) -> bool:
        """Greet the seeds under aliases, since their ids are not known yet. False: there are no seeds."""
        me = self._state.me
        seeds = [seed for seed in me.seeds if seed != me.address]
        for index, address in enumerate(seeds):
            self.connect(f"?{index}", address, now)
        return bool(seeds)

    def connect(self, peer: str, address: str, now: int) -> None:
        """Open a link and say hello on it."""
        self._state.peers[peer] = Peer(address, now, now, greet_again_ns=now + SECOND, table_ns=now)
        self._state.act(Connect(peer, address))
        self._state.tell(peer, self._hello(reply=True))

    # -- the choice of links -------------------------------------------------------------------------
    def gathers(self) -> bool:
        """Whether devices of the cohort are still missing before the first round.

        Each record that arrives then changes the graph and the overlay. With a link for each choice, every
        device would greet nearly all others. The links to the seeds connect the cohort meanwhile.
        """
        state = self._state
        return state.phase is Phase.SETTLE and len(state.members.alive()) < state.me.cohort

    def wanted(self) -> set[str]:
        """Neighbours in the learning graph, and partners for probes and gossip (membership/overlay.py).

        While the cohort gathers: the members that have a link. Devices that have finished are not wanted,
        because they will not answer.
        """
        state, me = self._state, self._state.me.device
        if self.gathers():
            return state.members.active().keys() & state.peers.keys() - {me}
        if self._wanted[0] != state.members.changes:
            alive, active, chosen = state.members.alive(), state.members.active(), set()
            if me in alive:
                self._overlay.update(active)
                chosen = {*state.graph(alive)[me], *self._overlay.partners(me)}
            self._wanted = state.members.changes, chosen & {*active} - {me}
        return self._wanted[1]

    def connect_wanted(self, now: int) -> None:
        """Open the wanted links that are missing."""
        active = self._state.members.active()
        for peer in sorted(self.wanted() - {*self._state.peers}):
            if len(self._state.peers) >= self._most_peers:
                return
            self.connect(peer, active[peer].address, now)

    def reach(self, now: int, peer: str) -> bool:
        """Open a link to any member, unless there are too many links. Returns whether there is a link now."""
        state = self._state
        if peer in state.peers:
            return True
        record = state.members.newest(peer)
        if record is None or record.status not in _MAY_ANSWER or len(state.peers) >= self._most_peers:
            return False
        self.connect(peer, record.address, now)
        return True

    def recall(self, now: int, source: str) -> bool:
        """Greet a member that sends messages without a completed hello exchange.

        Its link may be older than this device's process, or its hello was lost. False: it is no member that
        could be running.
        """
        if source == self._state.me.device or not self.reach(now, source):
            return False
        record, peer = self._state.members.newest(source), self._state.peers[source]
        if record is None or record.status not in _MAY_ANSWER or peer.refused:
            return False
        if now >= peer.greet_again_ns:
            peer.greet_again_ns = now + SECOND
            self._state.tell(source, self._hello(reply=True))
        return True

    def met_neighbours(self) -> bool:
        """Whether this device has greeted all its neighbours in the learning graph."""
        state, alive = self._state, self._state.members.alive()
        if state.me.device not in alive:
            return False
        around = state.graph(alive)[state.me.device]
        return all(peer in state.peers and state.peers[peer].greeted for peer in around)

    # -- periodic work -------------------------------------------------------------------------------
    def greet_again(self, now: int) -> None:
        """Repeat hellos that were not answered, with doubling pauses: a hello can be lost on the radio."""
        for name, peer in sorted(self._state.peers.items()):
            if not peer.greeted and now >= peer.greet_again_ns:
                peer.greet_pause_ns = min(2 * peer.greet_pause_ns, LONGEST_PAUSE_NS)
                peer.greet_again_ns = now + peer.greet_pause_ns
                self._state.tell(name, self._hello(reply=True))

    def close_idle(self, now: int, neighbours: Callable[[], Iterable[str]]) -> None:
        """Close links that are silent and not needed. Links to seeds stay open.

        `neighbours()`: the neighbours in the graphs of this round, which a correction may have refined.
        """
        state, idle_ns = self._state, int(self._state.config.membership.idle_s * SECOND)
        if state.phase not in (Phase.TRAIN, Phase.WAIT):
            return
        wanted = {*self.wanted(), *neighbours()}
        for name, peer in sorted(state.peers.items()):
            needed = name in wanted or name[0] == "?" or peer.refused or state.exchange.peer(name).wants
            if not needed and now - peer.heard_ns > idle_ns:
                self.disconnect(name)

    def reconcile(self, now: int, source: str, digest: bytes) -> None:
        """Send the whole table to a peer whose table differs, at most once in a probe period.

        While records spread, tables differ and each record reaches the peer by itself. So the table is sent
        if both tables have stood still for a period, or if the peer has got none for IMPATIENT periods.
        """
        peer, own = self._state.peers[source], self._state.members.digest()
        peer.digest = digest
        if digest == own:
            return
        if peer.differing != (digest, own):
            peer.differing, peer.differs_ns = (digest, own), now
        period_ns, since_table = self._period_ns, now - peer.table_ns
        quiet = now - peer.differs_ns >= period_ns
        if since_table >= period_ns and (quiet or since_table >= IMPATIENT * period_ns):
            self._state.tell_table(now, source)

    def disconnect(self, peer: str) -> None:
        """Close a link and forget what is known of the peer's copies."""
        if self._state.peers.pop(peer, None) is not None:
            self._state.act(Disconnect(peer))
        self._state.exchange.forget_peer(peer)

    # -- hello, bye and refusal ----------------------------------------------------------------------
    def on_hello(self, now: int, source: str, hello: Hello) -> None:
        """Greet a device whose bases and capabilities fit, and send it the records that it does not know."""
        state = self._state
        difference = self._difference(hello.fingerprint) or self._incapable(hello.capabilities)
        if source == state.me.device:
            difference = f"another device runs under the id {source}"
        known = state.peers.get(source)
        if known is None and len(state.peers) >= self._most_peers:
            state.act(Drop("crowded"))
            return
        if known is None or known.address != hello.address:
            if known is not None and now - known.since_ns < self._pause_ns:
                state.act(Drop("crowded"))
                return
            self.connect(source, hello.address, now)
        if difference is not None:
            self._refuse(source, difference, again=known is not None and known.refused)
            return
        self._name_aliases(source, hello.address)
        self._greet(now, source, hello)
        state.saw_round(min(hello.round, state.config.round.count - 1), source)

    def _greet(self, now: int, source: str, hello: Hello) -> None:
        state, peer = self._state, self._state.peers[source]
        if hello.reply:
            state.exchange.forget_sent(source)
        peer.greeted, peer.heard_ns = True, now
        # The peer may have started again, so its goodbyes are void.
        peer.done = peer.finished = peer.parting = False
        peer.dismissed = peer.silent = False
        if hello.reply:
            state.tell(source, self._hello(reply=False))
        self._answer(now, source, split_names(hello.known))
        if state.phase is Phase.FINISH:
            state.act(Farewell(source, "finished"))

    def _answer(self, now: int, source: str, known: frozenset[bytes]) -> None:
        """Send the records that a greeted peer lacks, so that tombstones arrive before any data (method 9).

        Within the pause the peer gets one table more if it lacks what the last one left out: a process that
        has just started may have the address of one that has ended.
        """
        peer = self._state.peers[source]
        if now - peer.answered_ns >= self._pause_ns:
            self._state.tell_table(now, source, known=known)
        elif not peer.left_out <= known:
            self._state.tell_table(now, source)

    def _refuse(self, source: str, difference: str, again: bool) -> None:
        """Refuse a hello. Only the first refusal of a peer is logged, so that nobody can fill the disk."""
        state = self._state
        if not again:
            state.log("refused", peer=source, reason=difference)
        state.peers[source].refused = True
        state.tell(source, Refuse(difference[:MAX_REASON]))
        state.act(Drop("refused"))

    def part(self, device: str) -> None:
        """A device leaves or retires: no round waits for it. Its link closes with its Bye or when idle."""
        peer = self._state.peers.get(device)
        if peer is not None:
            peer.done = peer.parting = True
            self._state.exchange.forget_peer(device)

    def on_bye(self, now: int, source: str, bye: Bye) -> None:
        """A peer sends no more data.

        The failure detector still watches a peer that leaves or retires until its record arrives.
        """
        peer = self._state.peers[source]
        if peer.parting:
            self.disconnect(source)
            return
        peer.done, peer.finished = True, bye.reason not in ("leave", "retire")
        peer.silent = bye.last

    def on_refuse(self, now: int, source: str, refuse: Refuse) -> None:
        """A peer refuses this device's hello.

        A device that does not train yet exits if all devices that it has called refuse it: one may lie.
        """
        state, peer = self._state, self._state.peers.get(source)
        if peer is None:
            state.act(Drop("stranger"))
            return
        if peer.refuses:
            return
        peer.refuses, reason = True, printable(refuse.reason)
        state.log("refused", by=source, reason=reason)
        if state.round < 0 and self._all_refuse():
            state.act(Exit(1, f"{source} refused {state.me.device}: {reason}"))

    def _all_refuse(self) -> bool:
        """Whether every device that was greeted refuses. An alias stands for the device at its address."""
        peers = self._state.peers
        refusing = {peer.address for peer in peers.values() if peer.refuses}
        return all(p.refuses or (name[0] == "?" and p.address in refusing) for name, p in peers.items())

    def _name_aliases(self, source: str, address: str) -> None:
        """Close the alias of a seed whose device id is known now."""
        peers = self._state.peers
        for alias in [name for name, peer in peers.items() if name[0] == "?" and peer.address == address]:
            del peers[alias]
            self._state.act(Meet(alias, source))

    def _hello(self, reply: bool) -> Hello:
        state = self._state
        known = state.members.names(most_names(state.config.adapter.max_devices))
        return Hello(state.me.address, self._fingerprint, reply, self._capabilities, state.round, known)

    def _incapable(self, theirs: list[str]) -> str | None:
        """The required capabilities that the other device lacks; None: it has all."""
        missing = sorted(set(self._required) - set(theirs))
        return f"it lacks {', '.join(missing)}" if missing else None


def most_names(slots: int) -> int:
    """The most membership records that a hello names."""
    return min(slots, MAX_RECORDS)


def printable(text: str) -> str:
    """A text from the network for a log line: other characters than printable ones are replaced."""
    return "".join(c if c.isprintable() else "?" for c in text)
