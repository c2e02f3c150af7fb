"""The positions of devices: fixed, or by the random waypoint model (docs/radio.md)."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from emulation.radio.hashed_random import uniform
from peers.radio_config import MobilityConfig, WirelessConfig

Point = tuple[float, float]  # m, in [0, area_m] x [0, area_m]


@dataclass
class _Walk:
    """The waypoints of one device, and the distance walked at each of them. Both lists only grow."""

    points: list[Point]
    marks_m: list[float] = field(default_factory=lambda: [0.0])

    def add_waypoint(self, point: Point) -> None:
        self.marks_m.append(self.marks_m[-1] + math.dist(self.points[-1], point))
        self.points.append(point)

    def at(self, walked_m: float) -> Point:
        """The point after a walked distance, which is less than the last mark."""
        leg = bisect_right(self.marks_m, walked_m)
        (x, y), (to_x, to_y) = self.points[leg - 1], self.points[leg]
        start, end = self.marks_m[leg - 1], self.marks_m[leg]
        share = (walked_m - start) / (end - start)
        return x + share * (to_x - x), y + share * (to_y - y)


class Positions:
    """The position of each device in each round, a function of the seed and the device id.

    A device starts at its position in the scenario, or at a point drawn uniformly from the area. In the
    random waypoint model it walks straight to a uniformly drawn point, then to the next one, without pauses
    and at constant speed.
    """

    def __init__(self, seed: int, wireless: WirelessConfig, mobility: MobilityConfig) -> None:
        self._seed, self._area_m, self._given = seed, wireless.area_m, wireless.positions
        self._step_m = 0.0 if mobility.kind == "none" else mobility.speed_mps * mobility.round_s
        self._walks: dict[str, _Walk] = {}

    def at(self, device: str, round_: int) -> Point:
        """The position in metres. A round before 0 counts as 0."""
        walk = self._walks.setdefault(device, _Walk([self._start(device)]))
        if not self._step_m:
            return walk.points[0]
        walked_m = self._step_m * max(0, round_)
        while walk.marks_m[-1] <= walked_m:
            walk.add_waypoint(self._drawn(device, len(walk.points)))
        return walk.at(walked_m)

    def _start(self, device: str) -> Point:
        given = self._given.get(device)
        return (given[0], given[1]) if given else self._drawn(device, 0)

    def _drawn(self, device: str, number: int) -> Point:
        x, y = (uniform("waypoint", self._seed, device, number, axis) for axis in "xy")
        return x * self._area_m, y * self._area_m
