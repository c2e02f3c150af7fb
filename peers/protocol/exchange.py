"""Who has which version of what: plans what is sent in a round and gathers what arrived (method 5 and 8).

Sans-I/O. A received matrix is an opaque object here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator_free.averaging.mixing import Arrival, Mix, MixingMode
from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.send_allocation import Allocating
from transport.wire.messages import Manifest

Choose = Callable[
    [Sequence[Transfer], Collection[Transfer]], Mapping[Transfer, str]
]  # wanted, asked: codec of what goes
KEPT = 4  # rounds of which copies of a part wait, by peer
ZERO = -1  # the version of a block that nobody has trained yet: B = 0 everywhere


@dataclass(slots=True)
class PeerCopies:
    """What one neighbour has of mine, and what it last sent me."""

    has: dict[Part, int] = field(default_factory=dict)
    wants: set[Part] = field(default_factory=set)
    cache: dict[Part, Arrival] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """One neighbour's share of a round."""

    parts: tuple[tuple[Part, int, str], ...]
    items: tuple[tuple[str, int, str, int, str], ...]
    withheld: int
    codecs: Mapping[Part, str] = field(default_factory=dict)  # of `parts`, where it is not the scenario's


class Exchange:
    """The copies one device holds, by part, and what its neighbours hold."""

    def __init__(
        self,
        mode: MixingMode,
        groups: Iterable[str],
        part_bytes: PartBytes,
        allocating: Allocating | None = None,
    ) -> None:
        self.mode, self.allocating = mode, allocating
        self.groups = tuple(groups)
        self.part_bytes = part_bytes
        self.held: dict[Part, int] = {}
        self.unknown: set[Part] = set()  # held at B = 0 only because nobody has sent a copy
        self.zero: set[Part] = set()  # B = 0 for good: the owner went before anyone mixed with it
        self.peers: dict[str, PeerCopies] = {}
        # Own parts that were refitted, and who was sent them in which round.
        self._replacing: dict[Part, dict[str, int]] = {}
        self._waiting: dict[Transfer, int] = {}
        self._inbox: dict[str, dict[Part, dict[int, Arrival]]] = {}  # by peer, part and round

    def parts(self, key: BlockKey) -> list[Part]:
        return [Part(key, group) for group in self.groups]

    def add(self, key: BlockKey, version: int = ZERO) -> None:
        self.held.update(dict.fromkeys(self.parts(key), version))

    def drop(self, key: BlockKey) -> None:
        """Forget all of a block: held, cached, waiting, received."""
        for part in self.parts(key):
            self.held.pop(part, None)
            self.unknown.discard(part)
            self.zero.discard(part)
            self._replacing.pop(part, None)
            for box in self._inbox.values():
                box.pop(part, None)
        for peer in self.peers.values():
            peer.wants -= {p for p in peer.wants if p.block == key}
            for part in self.parts(key):
                peer.has.pop(part, None)
                peer.cache.pop(part, None)
        self._waiting = {k: n for k, n in self._waiting.items() if k[1].block != key}
        if self.allocating is not None:
            self.allocating.drop(key)

    def outdate(self) -> None:
        """Copies that are held from before this device began do not count: newer ones are to come."""
        self.held = dict.fromkeys(self.held, ZERO)

    def replace(self, own: BlockKey) -> None:
        """The own block has been refitted: copies of it from before are to be replaced, not mixed with."""
        if not self.mode.shared_versions:  # there, a newer version replaces older ones anyway
            self._replacing = {part: {} for part in self.parts(own)}

    def refitted(self) -> bool:
        """Whether the own block has been refitted and nobody has had it yet."""
        return any(not told for told in self._replacing.values())

    def replaces(self, part: Part) -> bool:
        """Whether neighbours that have not had it take the own part over whole."""
        return part in self._replacing

    def forget_peer(self, peer: str) -> None:
        self.peers.pop(peer, None)
        self._inbox.pop(peer, None)
        self._tell_again(peer)
        if self.allocating is not None:
            self.allocating.forget_peer(peer)

    def untold(self, peer: str) -> None:
        """A peer that may have started again has nothing of what was sent to it."""
        self.peer(peer).has.clear()
        self._tell_again(peer)

    def peer(self, name: str) -> PeerCopies:
        return self.peers.setdefault(name, PeerCopies())

    def want(self, peer: str, parts: Iterable[Part]) -> None:
        """A peer asks for parts; those that are held here go to it when a round is published."""
        copies = self.peer(peer)
        for part in parts:
            if part in self.held:
                copies.wants.add(part)
                copies.has.pop(part, None)  # an earlier answer may have been lost

    # -- sending -----------------------------------------------------------------------------------
    def plan(
        self,
        own: BlockKey,
        receivers: Iterable[str],
        budget_bytes: int,
        cause: str,
        goes: Callable[[str, str], bool] = lambda peer, group: True,
        choose: Choose | None = None,
        outages: Collection[str] = (),
    ) -> dict[str, Plan]:
        """What goes to whom, and in which codec where `choose` says; None: within the data budget, first in
        first out.

        `goes(peer, group)`: whether a group is exchanged with a peer in this round; what was asked for is.
        `outages`: peers to which nothing goes; what they asked for waits.
        """
        offers = {peer: self._offers(own, peer) for peer in sorted(receivers)}
        wanted = [
            (peer, part)
            for peer, parts in offers.items()
            for part in parts
            if peer not in outages and (goes(peer, part.group) or part in self.peer(peer).wants)
        ]
        codecs: Mapping[Transfer, str] = {}
        if choose is None:
            chosen = self._first_in(own, wanted, budget_bytes)
        else:
            codecs = choose(wanted, {slot for slot in wanted if slot[1] in self.peer(slot[0]).wants})
            chosen = {*codecs}
        lacking = Counter(peer for peer, part in wanted if (peer, part) not in chosen)
        plans = {}
        for peer, parts in offers.items():
            sent = {part for to, part in chosen if to == peer}
            made = self._plan_one(own, peer, set(parts), sent, cause, lacking[peer])
            plans[peer] = replace(made, codecs={p: c for (to, p), c in codecs.items() if to == peer})
        return plans

    def _first_in(self, own: BlockKey, wanted: Iterable[Transfer], budget_bytes: int) -> set[Transfer]:
        """What was asked for and what waited longest first, then the own block."""

        def turn(want: Transfer) -> tuple[bool, int, bool, Part, str]:
            peer, part = want
            asked = part in self.peer(peer).wants
            return not asked, -self._waiting.get(want, 0), part.block != own, part, peer

        chosen: set[Transfer] = set()
        for want in sorted(wanted, key=turn):
            size = self.part_bytes(want[1].group)
            if size <= budget_bytes:
                budget_bytes -= size
                chosen.add(want)
                self._waiting.pop(want, None)
            else:
                self._waiting[want] = self._waiting.get(want, 0) + 1
        return chosen

    def _offers(self, own: BlockKey, peer: str) -> list[Part]:
        copies = self.peer(peer)
        known = [p for p in self.held if p not in self.unknown]
        mine = [p for p in known if self.mode.relays or p.block == own or p in copies.wants]
        if self.mode.shared_versions:  # the owner alone changes a block: nobody has news of it for the owner
            mine = [p for p in mine if p.block.device != peer or p in copies.wants]  # it left a block behind
        return [p for p in mine if self.held[p] > copies.has.get(p, ZERO)]

    def _plan_one(
        self, own: BlockKey, peer: str, offered: set[Part], chosen: set[Part], cause: str, withheld: int
    ) -> Plan:
        copies = self.peer(peer)
        parts, items = [], []
        for part, version in sorted(self.held.items()):
            status = "unchanged"
            if part in chosen:
                status = "sent"
                parts.append((part, version, "transfer" if part in copies.wants else cause))
                if part in self._replacing and peer not in self._replacing[part]:
                    status = "replaces"
                    self._replacing[part][peer] = version
                copies.has[part] = version
                copies.wants.discard(part)
            elif part in offered or part in self.unknown:
                status = "withheld"
            elif not self.mode.relays and part.block != own and part not in copies.wants:
                continue
            elif version == ZERO:
                copies.wants.discard(part)
            elif self._replacing.get(part, {}).get(peer) == version:  # sent before, in this round
                status = "replaces"
            items.append((part.block.device, part.block.incarnation, part.group, version, status))
        return Plan(tuple(parts), tuple(items), withheld)

    # -- receiving ---------------------------------------------------------------------------------
    def adopt(self, peer: str, part: Part, copy: Arrival) -> Mix:
        """Take a neighbour's copy over whole: there is none of its own to mix it with."""
        self.held[part] = copy.version or 0
        self.unknown.discard(part)
        self.peer(peer).cache[part] = copy
        return Mix(part, ((1.0, copy.values),), copy.version)

    def receive(self, peer: str, part: Part, version: int, round_: int, values: object) -> None:
        """For a round that has not been closed. Of one who is far ahead the newest KEPT are kept."""
        arrived = self._inbox.setdefault(peer, {}).setdefault(part, {})
        arrived[round_] = Arrival(version, values)
        if len(arrived) > KEPT:
            del arrived[min(arrived)]

    def note(self, peer: str, manifest: Manifest) -> None:
        """A manifest tells which versions the sender holds: nothing older needs to go there."""
        if not self.mode.shared_versions:
            return
        has = self.peer(peer).has
        for device, incarnation, group, version, _ in manifest.items:
            part = Part(BlockKey(device, incarnation), group)
            has[part] = max(has.get(part, ZERO), version)

    def close(
        self,
        own: BlockKey,
        round_: int,
        weights: Mapping[str, Mapping[str, float]],
        manifests: Mapping[str, Manifest],
    ) -> tuple[Mix, ...]:
        """The operations that end a round; takes what has arrived for it out of the inbox.

        `weights`: by group, of the neighbours heard.
        """
        arrived: dict[str, dict[Part, Arrival]] = {}
        for peer in sorted({*self._inbox, *manifests}):
            arrived[peer] = self._taken(peer, round_)
            if not self.mode.shared_versions:
                manifest = manifests.get(peer)
                arrived[peer] = {} if manifest is None else self._copies(peer, manifest, arrived[peer])
                self._leave_out(peer, round_, arrived[peer])
        for part, told in list(self._replacing.items()):
            for peer in [p for p, at in told.items() if at == round_ and p not in manifests]:
                del told[peer]  # it is not in this round: what was sent may be lost on it
            if manifests and all(told.get(peer, round_) < round_ for peer in manifests):
                del self._replacing[part]
        mixes = tuple(
            mix for group in self.groups for mix in self._combine(own, group, weights[group], arrived)
        )
        for mix in mixes:
            if mix.version is not None:
                self.held[mix.part] = mix.version
        return mixes

    def _tell_again(self, peer: str) -> None:
        for told in self._replacing.values():
            told.pop(peer, None)

    def _leave_out(self, peer: str, round_: int, copies: dict[Part, Arrival]) -> None:
        """Copies of the own block that are older than its refit."""
        for part, told in self._replacing.items():
            if told.get(peer, round_) >= round_:
                copies.pop(part, None)

    def _combine(
        self,
        own: BlockKey,
        group: str,
        weights: Mapping[str, float],
        arrived: Mapping[str, Mapping[Part, Arrival]],
    ) -> list[Mix]:
        held = {part: version for part, version in self.held.items() if part.group == group}
        return self.mode.combine(own, held, weights, arrived)

    def _taken(self, peer: str, round_: int) -> dict[Part, Arrival]:
        """What is due, the newest of each part; a neighbour that is ahead has sent for later rounds too."""
        taken = {}
        for part, arrived in sorted(self._inbox.get(peer, {}).items()):
            due = sorted(at for at in arrived if at <= round_)
            for at in due:
                taken[part] = arrived.pop(at)
        return taken

    def _copies(self, peer: str, manifest: Manifest, fresh: dict[Part, Arrival]) -> dict[Part, Arrival]:
        """The neighbour's copies of this round: just sent, or the same as before."""
        cache = self.peer(peer).cache
        cache.update(fresh)
        copies = {}
        for device, incarnation, group, version, status in manifest.items:
            part = Part(BlockKey(device, incarnation), group)
            if version == ZERO and status == "unchanged":
                copies[part] = Arrival(ZERO, None)  # still zero
            elif status != "withheld" and part in cache and cache[part].version == version:
                whole = status == "replaces" and part in fresh and part.block.device == peer
                copies[part] = cache[part]._replace(replaces=whole)
        return copies
