"""Mixing: the weights of a round and, per mode, what is offered to a neighbour and how arrivals are combined.

Pure decisions on versions and weights. A copy's values never come here: a received matrix is an opaque object
that is handed on in the returned operations (method 5, eq. 4-6 and 23).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from coordinator_free.averaging.topology import Graph
from coordinator_free.identifiers import BlockKey, Part


class Arrival(NamedTuple):
    """A neighbour's copy of a part. replaces: its owner has refitted it, all other copies are out of date."""

    version: int
    values: object
    replaces: bool = False


class Mix(NamedTuple):
    """own <- (1 - sum of weights) * own + sum of weight * values; one term of weight 1 replaces the copy."""

    part: Part
    terms: tuple[tuple[float, Any], ...]
    version: int | None = None  # newest: the owner's version that the copy now has


def metropolis_row(graph: Graph[str], device: str) -> dict[str, float]:
    """Metropolis-Hastings with the +1: w_ij = 1/(1 + max(d_i, d_j)); w_ii is the rest (method 5)."""
    degree = dict(graph.degree())
    return {peer: 1 / (1 + max(degree[device], degree[peer])) for peer in sorted(graph[device])}


class MixingMode(Protocol):
    """How copies of a block come together. Stateless; one instance per device."""

    relays: bool  # copies of other devices' blocks are sent too
    foreign_basis: bool  # paper-literal: mixes blocks of different devices
    shared_versions: bool  # a version is the owner's and means the same bytes wherever it is held

    def damping(self, members: int, omega: float | None) -> float:
        """The share of its own move over a round that a device keeps before it sends."""

    def combine(
        self,
        own: BlockKey,
        held: Mapping[Part, int],
        weights: Mapping[str, float],
        arrived: Mapping[str, Mapping[Part, Arrival]],
    ) -> list[Mix]:
        """The operations that close a round.

        `held`: parts and their versions; `weights`: of the neighbours heard, gamma applied.
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
    """B_u^(i) <- sum_j [(1-gamma) I + gamma W]_ij B_u^(j), block by block; absent weight stays.

    But what replaces other copies does so whole.
    """

    relays = True
    foreign_basis = False
    shared_versions = False

    def damping(self, members: int, omega: float | None) -> float:
        return 1.0

    def combine(
        self,
        own: BlockKey,
        held: Mapping[Part, int],
        weights: Mapping[str, float],
        arrived: Mapping[str, Mapping[Part, Arrival]],
    ) -> list[Mix]:
        terms = {
            part: _whole(part, weights, arrived) or _terms(part, weights, arrived) for part in sorted(held)
        }
        mixes = (Mix(part, found) for part, found in terms.items())
        return [mix for mix in mixes if mix.terms]


@mixing_mode("newest")
class Newest:
    """Every device keeps and relays the newest version of each block; only the owner changes it, damped."""

    relays = True
    foreign_basis = False
    shared_versions = True

    def damping(self, members: int, omega: float | None) -> float:
        return 1 / max(members, 1) if omega is None else omega

    def combine(
        self,
        own: BlockKey,
        held: Mapping[Part, int],
        weights: Mapping[str, float],
        arrived: Mapping[str, Mapping[Part, Arrival]],
    ) -> list[Mix]:
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
    """Eq. (4) as printed: devices average their own blocks although each lives in another basis.

    A comparison arm: the leave projection then removes nothing (method 1).
    """

    relays = False
    foreign_basis = True
    shared_versions = False

    def damping(self, members: int, omega: float | None) -> float:
        return 1.0

    def combine(
        self,
        own: BlockKey,
        held: Mapping[Part, int],
        weights: Mapping[str, float],
        arrived: Mapping[str, Mapping[Part, Arrival]],
    ) -> list[Mix]:
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


def _whole(
    part: Part, weights: Mapping[str, float], arrived: Mapping[str, Mapping[Part, Arrival]]
) -> tuple[tuple[float, Any], ...]:
    owner = part.block.device
    copy = arrived.get(owner, {}).get(part) if owner in weights else None
    return ((1.0, copy.values),) if copy is not None and copy.replaces else ()


def _terms(
    part: Part, weights: Mapping[str, float], arrived: Mapping[str, Mapping[Part, Arrival]]
) -> tuple[tuple[float, Any], ...]:
    peers: Iterable[str] = sorted(p for p in weights if part in arrived.get(p, {}))
    return tuple((weights[p], arrived[p][part].values) for p in peers)
