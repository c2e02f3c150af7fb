"""The learning graph of a moment as a small picture. A device has the same place in all pictures of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIDE, RADIUS = 240, 88  # of the picture and of the circle of devices, in units of the SVG
NODE = 15


@dataclass(frozen=True)
class Node:
    """A device. `there`: whether it takes part at this moment."""

    name: str
    x: float
    y: float
    there: bool


@dataclass(frozen=True)
class Edge:
    """Two devices that mix with each other, and both weights as a text."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str
    one_way: bool


@dataclass(frozen=True)
class Picture:
    """A graph that is ready to be printed by `templates/report.html.j2`."""

    title: str
    alt: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def picture(
    title: str, everyone: Sequence[str], there: Sequence[str], weights: Mapping[tuple[str, str], float]
) -> Picture:
    """The devices on a circle. `weights`: (device, neighbour) -> its mixing weight."""
    places = {device: _place(i, len(everyone)) for i, device in enumerate(everyone)}
    nodes = tuple(Node(device, *place, device in there) for device, place in places.items())
    pairs = sorted({tuple(sorted(pair)) for pair in weights if set(pair) <= set(places)})
    edges = tuple(_edge(a, b, places, weights) for a, b in pairs)
    missing = [device for device in everyone if device not in there]
    alt = f"{title}: {len(there)} devices, {len(edges)} pairs of neighbours"
    return Picture(title, alt + (f"; not there: {', '.join(missing)}" if missing else ""), nodes, edges)


def _place(index: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * index / max(1, count) - math.pi / 2
    return round(SIDE / 2 + RADIUS * math.cos(angle), 1), round(SIDE / 2 + RADIUS * math.sin(angle), 1)


def _edge(
    a: str,
    b: str,
    places: Mapping[str, tuple[float, float]],
    weights: Mapping[tuple[str, str], float],
) -> Edge:
    known = [(x, y, weights[x, y]) for x, y in ((a, b), (b, a)) if (x, y) in weights]
    text = "\n".join(f"{x} mixes with {y}: weight {weight:.3g}" for x, y, weight in known)
    return Edge(*places[a], *places[b], text, len(known) == 1)
