"""Mixing: the weights of a round and, per mode, which copies are sent and how arrived copies are combined.

Decisions use versions and weights only. A received matrix is an opaque object that the returned operations
pass on (method 5, eq. 4-6 and 23).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from coordinator_free.averaging.topology import Graph
from coordinator_free.identifiers import BlockKey, Part


class Arrival(NamedTuple):
    """A neighbour's copy of a part.

    `replaces`: its owner has refitted it, so all other copies are out of date.
    """

    version: int
    values: object
    replaces: bool = False


class Follow(NamedTuple):
    """Kept copies of a part move towards its owner's copy: copy <- copy + share (owner - copy).

    `owner`: None means the own copy before the mixing. `kept`: shares and copies of neighbours. `peers`: they
    assume that the own copy moves by `share`.
    """

    owner: Any
    kept: tuple[tuple[float, Any], ...]
    share: float
    peers: tuple[str, ...]


class Mix(NamedTuple):
    """own <- (1 - sum of weights) * own + sum of weight * values. One term of weight 1 replaces the copy.

    `version`: the owner's version that the copy has afterwards (mode `newest` only). `follow`: what follows
    the mixing (`mixing.tolerance` above 0 only).
    """

    part: Part
    terms: tuple[tuple[float, Any], ...]
    version: int | None = None
    follow: Follow | None = None


Versions = Mapping[Part, int]
Weights = Mapping[str, float]  # by neighbour
Arrivals = Mapping[str, Mapping[Part, Arrival]]  # by neighbour


def metropolis_row(graph: Graph[str], device: str) -> dict[str, float]:
    """The row of W of `device`, without the diagonal: w_ij = 1/(1 + max(d_i, d_j)), d the degrees.

    Metropolis-Hastings weights with the +1 (Xiao, Boyd and Lall, 2005; method 5). w_ii is 1 minus the sum.
    """
    degree = dict(graph.degree())
    return {peer: 1 / (1 + max(degree[device], degree[peer])) for peer in sorted(graph[device])}


class MixingMode(Protocol):
    """How a device combines copies of a block. Stateless; one instance per device."""

    relays: bool  # a device also sends its copies of foreign blocks
    foreign_basis: bool  # blocks of different devices are mixed (paper-literal)
    shared_versions: bool  # a version is assigned by the owner and means the same bytes on every device

    def damping(self, members: int, omega: float | None) -> float:
        """The factor by which a device scales its own change of a round before it sends: omega, or the mode's
        default.
        """

    def combine(self, own: BlockKey, held: Versions, weights: Weights, arrived: Arrivals) -> list[Mix]:
        """The operations that close a round.

        `held`: parts and their versions. `weights`: of the neighbours whose data arrived, scaled by gamma.
        `arrived`: copies by neighbour and part.
        """


MODES: dict[str, Callable[[], MixingMode]] = {}


def mixing_mode(name: str) -> Callable[[Callable[[], MixingMode]], Callable[[], MixingMode]]:
    """Decorator: add a mode to the registry."""

    def add(mode: Callable[[], MixingMode]) -> Callable[[], MixingMode]:
        MODES[name] = mode
        return mode

    return add


@mixing_mode("average")
class Average:
    """B_u^(i) <- sum_j [(1-gamma) I + gamma W]_ij B_u^(j), block by block (eq. 4-6).

    The weight of a missing copy stays with the own copy. A refitted part replaces the own copy.
    """

    relays = True
    foreign_basis = False
    shared_versions = False

    def damping(self, members: int, omega: float | None) -> float:
        return 1.0

    def combine(self, own: BlockKey, held: Versions, weights: Weights, arrived: Arrivals) -> list[Mix]:
        terms = {
            part: _whole(part, weights, arrived) or _terms(part, weights, arrived) for part in sorted(held)
        }
        mixes = (Mix(part, found) for part, found in terms.items())
        return [mix for mix in mixes if mix.terms]


@mixing_mode("newest")
class Newest:
    """Each device keeps and relays the newest version of each block.

    Only the owner changes a block, damped.
    """

    relays = True
    foreign_basis = False
    shared_versions = True

    def damping(self, members: int, omega: float | None) -> float:
        return 1 / max(members, 1) if omega is None else omega

    def combine(self, own: BlockKey, held: Versions, weights: Weights, arrived: Arrivals) -> list[Mix]:
        mixes = []
        for part in sorted(held):
            if part.block == own:
                continue
            copies = [a[part] for _, a in sorted(arrived.items()) if part in a]
            best = max(copies, key=lambda copy: copy.version, default=None)
            if best is not None and best.version > held[part]:
                mixes.append(Mix(part, ((1.0, best.values),), best.version))
        return mixes


@mixing_mode("paper-literal")
class PaperLiteral:
    """Eq. (4) as printed: devices average their own blocks although each block has another basis.

    A comparison arm: the leave projection removes nothing from such blocks (method 1).
    """

    relays = False
    foreign_basis = True
    shared_versions = False

    def damping(self, members: int, omega: float | None) -> float:
        return 1.0

    def combine(self, own: BlockKey, held: Versions, weights: Weights, arrived: Arrivals) -> list[Mix]:
        mixes = []
        for part in sorted(p for p in held if p.block == own):
            theirs = {
                peer: {part: copy}
                for peer, copies in arrived.items()
                for p, copy in copies.items()
                if (p.block.device, p.group) == (peer, part.group)
            }
            mixes.append(Mix(part, _terms(part, weights, theirs)))
        return [mix for mix in mixes if mix.terms]


def _whole(part: Part, weights: Weights, arrived: Arrivals) -> tuple[tuple[float, Any], ...]:
    """The owner's refitted copy with weight 1, if it arrived."""
    owner = part.block.device
    copy = arrived.get(owner, {}).get(part) if owner in weights else None
    return ((1.0, copy.values),) if copy is not None and copy.replaces else ()


def _terms(part: Part, weights: Weights, arrived: Arrivals) -> tuple[tuple[float, Any], ...]:
    """The weighted copies of a part, in order of neighbour."""
    peers: Iterable[str] = sorted(p for p in weights if part in arrived.get(p, {}))
    return tuple((weights[p], arrived[p][part].values) for p in peers)
