"""The overlay: links for probes and gossip, in addition to the learning graph.

Paths in the learning graph can be long (N/2 hops in a ring). Each device therefore picks k other devices by
rendezvous hashing (Thaler and Ravishankar, 1998): those with the smallest hash of (seed, picker, picked). A
graph of k >= 2 random picks per device is connected with probability -> 1 (Fenner and Frieze, 1982), and its
diameter is O(log N). Every device can compute the picks of all devices without a message. When a device joins
or leaves, partners change only for the devices that pick it or picked it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache


@lru_cache(maxsize=1 << 16)
def _weight(seed: int, picker: str, picked: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{picker}/{picked}".encode(), digest_size=8).digest()


def picks(device: str, members: Collection[str], seed: int, k: int) -> list[str]:
    """The k other devices that `device` picks, smallest hash first."""
    others = (name for name in members if name != device)
    return sorted(others, key=lambda name: (_weight(seed, device, name), name))[:k]


def partners(device: str, members: Collection[str], seed: int, k: int) -> set[str]:
    """The devices that `device` picks and the devices that pick it: at least k, 2k on average."""
    mine = set(picks(device, members, seed, k))
    return mine | {name for name in members if name != device and device in picks(name, members, seed, k)}
