"""The overlay: links for probes and gossip, in addition to the learning graph.

Paths in the learning graph can be long (N/2 hops in a ring). Each device therefore picks k other devices by
rendezvous hashing (Thaler and Ravishankar, 1998): those with the smallest hash of (seed, picker, picked). A
graph of k >= 2 random picks per device is connected with probability -> 1 (Fenner and Frieze, 1982), and its
diameter is O(log N). Every device can compute the picks of all devices without a message. When a device joins
or leaves, partners change only for the devices that pick it or picked it.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Collection

Pick = tuple[bytes, str]  # the hash of (seed, picker, picked), and the picked device


class Overlay:
    """The picks of all members. An update costs O(k N) for each device that comes or goes."""

    def __init__(self, seed: int, k: int) -> None:
        """`k`: devices that each device picks."""
        self._seed, self._k = seed, k
        self._picks: dict[str, list[Pick]] = {}  # of each member, smallest hash first

    def update(self, members: Collection[str]) -> None:
        """Set the members."""
        now = {*members}
        gone, new = self._picks.keys() - now, sorted(now - self._picks.keys())
        for name in gone:
            del self._picks[name]
        for picker, chosen in self._picks.items():
            if any(picked in gone for _, picked in chosen):
                self._picks[picker] = self._all_picks(picker, now)
            else:
                self._add(picker, chosen, new)
        for picker in new:
            self._picks[picker] = self._all_picks(picker, now)

    def picks(self, device: str) -> list[str]:
        """The k other members that a device picks, smallest hash first."""
        chosen = self._picks.get(device)
        return [name for _, name in (self._all_picks(device, self._picks) if chosen is None else chosen)]

    def partners(self, device: str) -> set[str]:
        """The members that a device picks, and those that pick it: at least k, 2k on average."""
        mine = {*self.picks(device)}
        return mine | {name for name in self._picks if name != device and device in self.picks(name)}

    def _all_picks(self, picker: str, members: Collection[str]) -> list[Pick]:
        return sorted((self._weight(picker, name), name) for name in members if name != picker)[: self._k]

    def _add(self, picker: str, chosen: list[Pick], new: Collection[str]) -> None:
        for name in new:
            insort(chosen, (self._weight(picker, name), name))
            del chosen[self._k :]

    def _weight(self, picker: str, picked: str) -> bytes:
        return hashlib.blake2b(f"{self._seed}/{picker}/{picked}".encode(), digest_size=8).digest()
