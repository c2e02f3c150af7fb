"""The exchange of copies: who holds which version of which part, what to send, what to mix (method 5 and 8).

A received matrix is an opaque object here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator_free.averaging.mixing import Arrival, Mix, MixingMode
from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.send_allocation import SendAllocation
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
    ) -> None:
        self.mode, self.allocation = mode, allocation
        self.groups = tuple(groups)
        self.part_bytes = part_bytes
        self.held: dict[Part, int] = {}  # version of each part that is held
        self.unknown: set[Part] = set()  # held at B = 0 only because no copy has arrived
        self.zero: set[Part] = set()  # B = 0 for good: the owner went before anyone mixed with it
        self.peers: dict[str, PeerCopies] = {}
        self._refits: dict[Part, dict[str, int]] = {}  # refitted own parts: round of the send, by peer
        self._waiting: dict[Transfer, int] = {}  # rounds for which a transfer has been withheld
        self._arrived: dict[str, dict[Part, dict[int, Arrival]]] = {}  # by peer, part and round

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
            self._refits.pop(part, None)
            for by_part in self._arrived.values():
                dropped += [arrival.values for arrival in by_part.pop(part, {}).values()]
        for peer in self.peers.values():
            peer.wants -= {p for p in peer.wants if p.block == key}
            for part in parts:
                peer.has.pop(part, None)
                peer.cache.pop(part, None)
        self._waiting = {k: n for k, n in self._waiting.items() if k[1].block != key}
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
            self._refits = {part: {} for part in self.parts(own)}

    def refitted(self) -> bool:
        """Whether the own block was refitted and no neighbour has been sent it yet."""
        return any(not sent for sent in self._refits.values())

    def is_refitted(self, part: Part) -> bool:
        """Whether some neighbours still have to replace their copy of this own part."""
        return part in self._refits

    # -- peers -------------------------------------------------------------------------------------
    def forget_peer(self, peer: str) -> None:
        """Forget everything about a peer."""
        self.peers.pop(peer, None)
        self._arrived.pop(peer, None)
        self._forget_refits(peer)
        if self.allocation is not None:
            self.allocation.forget_peer(peer)

    def forget_sent(self, peer: str) -> None:
        """A peer may have started again: it has nothing of what was sent to it."""
        self.peer(peer).has.clear()
        self._forget_refits(peer)

    def _forget_refits(self, peer: str) -> None:
        for sent in self._refits.values():
            sent.pop(peer, None)

    def peer(self, name: str) -> PeerCopies:
        return self.peers.setdefault(name, PeerCopies())

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
        least_lag: Callable[[str, Part], int] = lambda peer, part: 1,
    ) -> dict[str, Plan]:
        """Plan the data of a round for each receiver.

        `choose` grants transfers and their codecs. Without it, parts are sent in the order of `_first_in`
        until the budget is spent. `goes(peer, group)`: whether a group is exchanged with a peer in this
        round; requested parts always are. `outages`: peers to which nothing is sent; their requests wait.
        `least_lag(peer, part)`: versions that a peer must be behind before it is owed a part (relaying.py).
        """
        offers = {peer: self._offers(own, peer, least_lag) for peer in sorted(receivers)}
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
            codecs = choose(wanted, {(peer, part) for peer, part in wanted if part in self.peer(peer).wants})
            chosen = {*codecs}
        lacking = Counter(peer for peer, part in wanted if (peer, part) not in chosen)
        plans = {}
        for peer, parts in offers.items():
            sent = {part for to, part in chosen if to == peer}
            made = self._plan_one(own, peer, set(parts), sent, cause, lacking[peer])
            plans[peer] = replace(made, codecs={p: c for (to, p), c in codecs.items() if to == peer})
        return plans

    def _first_in(self, own: BlockKey, wanted: Iterable[Transfer], budget_bytes: int) -> set[Transfer]:
        """The transfers that fit the budget: first requested parts, then by waiting time, then own parts.

        Each peer has an equal share of the budget for its requests. Requests beyond it have no priority.
        """
        wanted = list(wanted)
        urgent = self._urgent(wanted, budget_bytes)

        def turn(want: Transfer) -> tuple[bool, int, bool, Part, str]:
            peer, part = want
            return want not in urgent, -self._waiting.get(want, 0), part.block != own, part, peer

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

    def _urgent(self, wanted: Sequence[Transfer], budget_bytes: int) -> set[Transfer]:
        """The requested transfers within the shares of their peers; at least one for each peer."""
        share = budget_bytes // max(1, len({peer for peer, _ in wanted}))
        urgent, spent = set[Transfer](), Counter[str]()
        for peer, part in wanted:
            size = self.part_bytes(part.group)
            if part in self.peer(peer).wants and (not spent[peer] or spent[peer] + size <= share):
                spent[peer] += size
                urgent.add((peer, part))
        return urgent

    def _offers(self, own: BlockKey, peer: str, least_lag: Callable[[str, Part], int]) -> list[Part]:
        """The parts that a peer is owed: this device holds a newer version and has to send it."""
        copies = self.peer(peer)
        known = [p for p in self.held if p not in self.unknown]
        mine = [p for p in known if self.mode.relays or p.block == own or p in copies.wants]
        if self.mode.shared_versions:
            # The owner alone makes versions, so it needs none of its own block, except one that it requests:
            # a block of an earlier incarnation.
            mine = [p for p in mine if p.block.device != peer or p in copies.wants]
        lags = {p: self.held[p] - copies.has.get(p, ZERO) for p in mine}
        return [p for p, lag in lags.items() if lag >= (1 if p in copies.wants else least_lag(peer, p))]

    def _plan_one(
        self, own: BlockKey, peer: str, offered: set[Part], chosen: set[Part], cause: str, withheld: int
    ) -> Plan:
        """The plan for one neighbour; the chosen parts count as sent from now on."""
        parts: list[tuple[Part, int, str]] = []
        items: list[Item] = []
        for part, version in sorted(self.held.items()):
            if part in chosen:
                parts.append((part, version, "transfer" if part in self.peer(peer).wants else cause))
                status: str | None = self._mark_sent(peer, part, version)
            else:
                status = self._status_unsent(own, peer, part, version, part in offered)
            if status is not None:
                items.append((part.block.device, part.block.incarnation, part.group, version, status))
        return Plan(tuple(parts), tuple(items), withheld)

    def _mark_sent(self, peer: str, part: Part, version: int) -> str:
        """Note that a part goes to a peer; returns its status in the manifest."""
        copies, status = self.peer(peer), "sent"
        if part in self._refits and peer not in self._refits[part]:
            status = "replaces"
            self._refits[part][peer] = version
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
        elif self._refits.get(part, {}).get(peer) == version:  # sent earlier in this round
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
    ) -> tuple[Mix, ...]:
        """The mixing operations that end a round. The copies that arrived for it are consumed.

        `weights`: by group, then by neighbour whose manifest has arrived.
        """
        arrived: dict[str, dict[Part, Arrival]] = {}
        for peer in sorted({*self._arrived, *manifests}):
            arrived[peer] = self._take_arrived(peer, round_)
            if not self.mode.shared_versions:
                manifest = manifests.get(peer)
                arrived[peer] = {} if manifest is None else self._copies(peer, manifest, arrived[peer])
                self._remove_outdated(peer, round_, arrived[peer])
        self._close_refits(round_, manifests)
        mixes = tuple(
            mix for group in self.groups for mix in self._combine(own, group, weights[group], arrived)
        )
        for mix in mixes:
            if mix.version is not None:
                self.held[mix.part] = mix.version
        return mixes

    def _close_refits(self, round_: int, manifests: Collection[str]) -> None:
        """End a refit once all neighbours have replaced their copies.

        A peer without a manifest in this round may have lost what was sent, so it is sent again.
        """
        for part, sent in list(self._refits.items()):
            for peer in [p for p, at in sent.items() if at == round_ and p not in manifests]:
                del sent[peer]
            if manifests and all(sent.get(peer, round_) < round_ for peer in manifests):
                del self._refits[part]

    def _remove_outdated(self, peer: str, round_: int, copies: dict[Part, Arrival]) -> None:
        """Remove a neighbour's copies of the own block that are older than its refit."""
        for part, sent in self._refits.items():
            if sent.get(peer, round_) >= round_:
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
        return copies
