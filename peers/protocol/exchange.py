"""The exchange of copies: who holds which version of which part, what to send, what to mix (method 5 and 8).

A received matrix is an opaque object here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from coordinator_free.averaging.mixing import Arrival, Mix, MixingMode
from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.refits import Refits
from peers.protocol.relaying import LeastLag
from peers.protocol.send_allocation import SendAllocation
from peers.protocol.send_order import SendOrder
from peers.protocol.similar_copies import Following, Layer, Near, is_refreshed
from transport.wire.messages import Item, Manifest

Choose = Callable[
    [Sequence[Transfer], Collection[Transfer]], Mapping[Transfer, str]
]  # from the wanted transfers and the requested ones: codecs of the granted ones
KEPT = 4  # rounds for which arrived copies of a part are kept, for each peer
MAX_NOTED = 4096  # versions of parts that are not held here, noted for each peer
ZERO = -1  # the version of a block that nobody has trained yet: B = 0 everywhere


@dataclass(slots=True)
class PeerCopies:
    """One neighbour's copies, as far as this device knows."""

    has: dict[Part, int] = field(default_factory=dict)  # versions that were sent to it, or that it told
    wants: set[Part] = field(default_factory=set)  # parts that it has requested
    cache: dict[Part, Arrival] = field(default_factory=dict)  # its last copy of each part
    lost: set[Part] = field(default_factory=set)  # parts that are not here although it has sent them


@dataclass(frozen=True, slots=True)
class Plan:
    """The data of a round for one neighbour."""

    parts: tuple[tuple[Part, int, str], ...]  # part, version, cause
    items: tuple[Item, ...]  # of the manifest
    withheld: int  # parts that were owed and are not sent
    codecs: Mapping[Part, str] = field(default_factory=dict)  # parts in another codec than the scenario's


class Exchange:
    """The versions that one device holds, and the copies that it has sent and received."""

    def __init__(
        self,
        mode: MixingMode,
        groups: Iterable[str],
        part_bytes: PartBytes,
        allocation: SendAllocation | None = None,
        foreign_codec: str | None = None,
    ) -> None:
        """`foreign_codec`: of foreign copies that `fifo` sends; None: the scenario's."""
        self.mode, self.allocation, self.foreign_codec = mode, allocation, foreign_codec
        self.groups = tuple(groups)
        self.part_bytes = part_bytes
        self.held: dict[Part, int] = {}  # version of each part that is held
        self.unknown: set[Part] = set()  # held at B = 0 only because no copy has arrived
        self.zero: set[Part] = set()  # B = 0 for good: the owner went before anyone mixed with it
        self.peers: dict[str, PeerCopies] = {}
        self._refits = Refits()
        self._order = SendOrder()
        self._arrived: dict[str, dict[Part, dict[int, Arrival]]] = {}  # by peer, part and round

    @property
    def price(self) -> float | None:
        """The price of the budget; None with an allocator that has none."""
        price = None if self.allocation is None else self.allocation.price
        return None if price is None else price.value

    def parts(self, key: BlockKey) -> list[Part]:
        """The parts of a block."""
        return [Part(key, group) for group in self.groups]

    def add_block(self, key: BlockKey, version: int = ZERO) -> None:
        """Hold all parts of a block at a version."""
        self.held.update(dict.fromkeys(self.parts(key), version))

    def drop_block(self, key: BlockKey) -> list[object]:
        """Forget everything about a block: versions, cached copies, waiting times, arrived copies.

        Returns the values of the arrived copies, which the driver overwrites.
        """
        parts, dropped = self.parts(key), list[object]()
        for part in parts:
            self.held.pop(part, None)
            self.unknown.discard(part)
            self.zero.discard(part)
            self._refits.drop(part)
            for by_part in self._arrived.values():
                dropped += [arrival.values for arrival in by_part.pop(part, {}).values()]
        for peer in self.peers.values():
            peer.wants -= {p for p in peer.wants if p.block == key}
            peer.lost -= {p for p in peer.lost if p.block == key}
            for part in parts:
                peer.has.pop(part, None)
                peer.cache.pop(part, None)
        self._order.drop_block(key)
        if self.allocation is not None:
            self.allocation.drop_block(key)
        return dropped

    def outdate(self) -> None:
        """Set all versions to ZERO: the copies of a checkpoint are older than those of the run."""
        self.held = dict.fromkeys(self.held, ZERO)

    # -- refits of the own block -------------------------------------------------------------------
    def start_refit(self, own: BlockKey) -> None:
        """The own block was refitted. Neighbours must replace their copies of it and not average them.

        In `newest` a newer version replaces older ones in any case.
        """
        if not self.mode.shared_versions:
            self._refits.start(self.parts(own))

    def refitted(self) -> bool:
        """Whether the own block was refitted and no neighbour has been sent it yet."""
        return self._refits.any_unsent()

    def is_refitted(self, part: Part) -> bool:
        """Whether some neighbours still have to replace their copy of this own part."""
        return part in self._refits

    # -- peers -------------------------------------------------------------------------------------
    def forget_peer(self, peer: str) -> None:
        """Forget everything about a peer."""
        self.peers.pop(peer, None)
        self._arrived.pop(peer, None)
        self._refits.forget_peer(peer)
        if self.allocation is not None:
            self.allocation.forget_peer(peer)

    def forget_sent(self, peer: str) -> None:
        """A peer may have started again: it has nothing of what was sent to it."""
        self.peer(peer).has.clear()
        self._refits.forget_peer(peer)

    def peer(self, name: str) -> PeerCopies:
        return self.peers.get(name) or self.peers.setdefault(name, PeerCopies())

    def on_request(self, peer: str, parts: Iterable[Part]) -> None:
        """A peer requests parts. Those that are held here go to it with the next data of a round."""
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
        least_lag: LeastLag = lambda peer, part: 1,
        near: Near = MappingProxyType({}),
    ) -> dict[str, Plan]:
        """Plan the data of a round for each receiver.

        `choose` grants transfers and their codecs. Without it, parts are sent in the order of send_order.py
        until the budget is spent. `goes(peer, group)`: whether a group is exchanged with a peer in this
        round; requested parts always are. `outages`: peers to which nothing is sent; their requests wait.
        `least_lag(peer, part)`: versions that a peer must be behind before it is owed a part (relaying.py).
        `near`: whether peers' assumptions of the own copies are within the tolerance (similar_copies.py).
        """
        similar = {want for want, close in near.items() if close and self._is_similar(own, *want)}
        far = {want for want, close in near.items() if not close}
        offers = {
            peer: [p for p in self._offers(own, peer, least_lag, far) if (peer, p) not in similar]
            for peer in sorted(receivers)
        }
        asked = {(peer, part) for peer in offers for part in self.peer(peer).wants}
        wanted = [
            (peer, part)
            for peer, parts in offers.items()
            for part in parts
            if peer not in outages and (goes(peer, part.group) or (peer, part) in asked)
        ]
        if choose is None:
            codecs = self._coarse(own, wanted, asked)
            chosen = self._order.first_in(own, wanted, asked, budget_bytes, partial(self._size, codecs))
        else:
            codecs = choose(wanted, asked & {*wanted})
            chosen = {*codecs}
        silent = {(peer, p) for peer, p in similar if peer not in outages and goes(peer, p.group)}
        lacking = Counter(peer for peer, part in wanted if (peer, part) not in chosen)
        plans = {}
        for peer, parts in offers.items():
            sent, alike = ({part for to, part in of if to == peer} for of in (chosen, silent))
            made = self._plan_one(own, peer, set(parts), sent, alike, cause, lacking[peer])
            plans[peer] = replace(made, codecs={p: codecs[peer, p] for p in sent if (peer, p) in codecs})
        return plans

    def _coarse(
        self, own: BlockKey, wanted: Iterable[Transfer], asked: Collection[Transfer]
    ) -> Mapping[Transfer, str]:
        """Foreign copies go in a coarser codec where receivers tolerate its error; requested ones do not."""
        codec = self.foreign_codec
        of = [] if codec is None else [w for w in wanted if w[1].block != own and w not in asked]
        return dict.fromkeys(of, codec or "")

    def _size(self, codecs: Mapping[Transfer, str], want: Transfer) -> int:
        return self.part_bytes(want[1].group, codecs.get(want))

    def _is_similar(self, own: BlockKey, peer: str, part: Part) -> bool:
        """Whether a peer can do with the version that it was sent. Own parts are always sent."""
        copies = self.peer(peer)
        known = part.block != own and part in self.held and part in copies.has and part not in copies.wants
        return known and not is_refreshed(part, self.held[part])

    def _offers(self, own: BlockKey, peer: str, least_lag: LeastLag, far: Collection[Transfer]) -> list[Part]:
        """The parts of which this device has to send a newer version, or a better copy of the same one."""
        copies = self.peer(peer)
        known = [p for p in self.held if p not in self.unknown]
        mine = [p for p in known if self.mode.relays or p.block == own or p in copies.wants]
        if self.mode.shared_versions:
            # The owner alone makes versions, so it needs none of its own block, except one that it requests:
            # a block of an earlier incarnation.
            mine = [p for p in mine if p.block.device != peer or p in copies.wants]
        lags = {p: self.held[p] - copies.has.get(p, ZERO) for p in mine}
        least = {p: 0 if (peer, p) in far else 1 if p in copies.wants else least_lag(peer, p) for p in mine}
        return [p for p in mine if lags[p] >= least[p]]

    def _plan_one(
        self,
        own: BlockKey,
        peer: str,
        offered: set[Part],
        chosen: set[Part],
        similar: set[Part],
        cause: str,
        withheld: int,
    ) -> Plan:
        """The plan for one neighbour; the chosen parts count as sent from now on."""
        parts: list[tuple[Part, int, str]] = []
        items: list[Item] = []
        for part, version in sorted(self.held.items()):
            if part in chosen:
                parts.append((part, version, "transfer" if part in self.peer(peer).wants else cause))
                status: str | None = self._mark_sent(peer, part, version)
            elif part in similar:
                version, status = self.peer(peer).has[part], "similar"
            else:
                status = self._status_unsent(own, peer, part, version, part in offered)
            if status is not None:
                items.append((part.block.device, part.block.incarnation, part.group, version, status))
        return Plan(tuple(parts), tuple(items), withheld)

    def _mark_sent(self, peer: str, part: Part, version: int) -> str:
        """Note that a part goes to a peer; returns its status in the manifest."""
        copies, status = self.peer(peer), "sent"
        if self._refits.replaces(part, peer, version):
            status = "replaces"
        copies.has[part] = version
        copies.wants.discard(part)
        return status

    def _status_unsent(self, own: BlockKey, peer: str, part: Part, version: int, offered: bool) -> str | None:
        """The status in the manifest of a part that is not sent now; None: the manifest omits it.

        The manifest itself answers a request for a part that is B = 0.
        """
        copies = self.peer(peer)
        if offered or part in self.unknown:
            return "withheld"
        if not self.mode.relays and part.block != own and part not in copies.wants:
            return None
        if version == ZERO:
            copies.wants.discard(part)
        elif self._refits.sent_in(part, peer, version):  # sent earlier in this round
            return "replaces"
        return "unchanged"

    # -- receiving ---------------------------------------------------------------------------------
    def adopt(self, peer: str, part: Part, copy: Arrival) -> Mix:
        """Replace the own copy of a part by a neighbour's: there is no own value to mix it with."""
        self.held[part] = copy.version or 0
        self.unknown.discard(part)
        self.peer(peer).cache[part] = copy
        return Mix(part, ((1.0, copy.values),), copy.version)

    def on_copy(self, peer: str, part: Part, version: int, round_: int, values: object) -> None:
        """Keep a copy until its round closes. If a peer is far ahead, its newest KEPT copies are kept."""
        arrived = self._arrived.setdefault(peer, {}).setdefault(part, {})
        arrived[round_] = Arrival(version, values)
        if len(arrived) > KEPT:
            del arrived[min(arrived)]

    def on_manifest(self, peer: str, manifest: Manifest) -> None:
        """Note the versions that the sender holds: this device sends it no older ones."""
        if not self.mode.shared_versions:
            return
        has = self.peer(peer).has
        for device, incarnation, group, version, _ in manifest.items:
            part = Part(BlockKey(device, incarnation), group)
            if part not in self.held and len(has) >= MAX_NOTED:
                continue
            has[part] = max(has.get(part, ZERO), version)

    def close_round(
        self,
        own: BlockKey,
        round_: int,
        weights: Mapping[str, Mapping[str, float]],
        manifests: Mapping[str, Manifest],
        layers: Mapping[str, Layer] = MappingProxyType({}),
    ) -> tuple[Mix, ...]:
        """The mixing operations that end a round. The copies that arrived for it are consumed.

        `weights`: by group, then by neighbour whose manifest has arrived. `layers`: by group, if kept copies
        follow their owners (similar_copies.py).
        """
        arrived: dict[str, dict[Part, Arrival]] = {}
        for peer in sorted({*self._arrived, *manifests}):
            arrived[peer] = self._take_arrived(peer, round_)
            if not self.mode.shared_versions:
                manifest = manifests.get(peer)
                arrived[peer] = {} if manifest is None else self._copies(peer, manifest, arrived[peer])
                self._refits.remove_outdated(peer, round_, arrived[peer])
        mixes = tuple(
            mix for group in self.groups for mix in self._combine(own, group, weights[group], arrived)
        )
        if layers:
            following = Following(own, layers, self._kept, partial(self._reached, round_))
            mixes = tuple(following.add_to(mix, arrived) for mix in mixes)
            for part in following.missed(self.held, arrived):
                for copies in self.peers.values():  # send it whole: their estimates are off
                    copies.has.pop(part, None)
        self._refits.close_round(round_, manifests)
        for mix in mixes:
            if mix.version is not None:
                self.held[mix.part] = mix.version
        return mixes

    def _kept(self, peer: str, part: Part) -> Arrival | None:
        return self.peers[peer].cache.get(part) if peer in self.peers else None

    def _reached(self, round_: int, peer: str, part: Part) -> float | None:
        """The share by which a peer moves towards an own part in this round; None: as it mixes."""
        if self._refits.sent_in(part, peer, round_):
            return 1.0
        return None if self.peer(peer).has.get(part) == self.held[part] else 0.0

    def take_lost(self, peer: str) -> list[Part]:
        """The parts that a peer holds for known here, but whose kept copy is missing. They are sent again in
        both directions, because either end may have lost something."""
        copies = self.peer(peer)
        lost, copies.lost = sorted(copies.lost), set()
        for part in lost:
            copies.has.pop(part, None)
        return lost

    def _combine(
        self,
        own: BlockKey,
        group: str,
        weights: Mapping[str, float],
        arrived: Mapping[str, Mapping[Part, Arrival]],
    ) -> list[Mix]:
        held = {part: version for part, version in self.held.items() if part.group == group}
        return self.mode.combine(own, held, weights, arrived)

    def _take_arrived(self, peer: str, round_: int) -> dict[Part, Arrival]:
        """Remove the copies up to this round; returns the newest of each part. Later ones stay."""
        taken = {}
        for part, arrived in sorted(self._arrived.get(peer, {}).items()):
            for at in sorted(at for at in arrived if at <= round_):
                taken[part] = arrived.pop(at)
        return taken

    def _copies(self, peer: str, manifest: Manifest, fresh: dict[Part, Arrival]) -> dict[Part, Arrival]:
        """The neighbour's copies of this round: just sent, or unchanged since an earlier round."""
        cache = self.peer(peer).cache
        cache.update(fresh)
        copies = {}
        for device, incarnation, group, version, status in manifest.items:
            part = Part(BlockKey(device, incarnation), group)
            if version == ZERO and status == "unchanged":
                copies[part] = Arrival(ZERO, None)  # still B = 0
            elif status != "withheld" and part in cache and cache[part].version == version:
                whole = status == "replaces" and part in fresh and part.block.device == peer
                copies[part] = cache[part]._replace(replaces=whole)
            elif status == "similar" and part in self.held:
                self.peer(peer).lost.add(part)
        return copies
