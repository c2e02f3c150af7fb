"""Links for probing and gossip beside the learning graph, whose paths may be long (a ring: N/2 hops).

Each device picks k others by rendezvous hashing (Thaler and Ravishankar, 1998): those with the least hash of
(seed, picker, picked). A graph of k >= 2 random picks each is connected with probability -> 1 (Fenner and
Frieze, 1982) and its diameter is O(log N). Everybody can compute everybody's picks, nobody has to be asked;
when a device comes or goes, only those who pick it, or picked it, get another partner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache


@lru_cache(maxsize=1 << 16)
def _weight(seed: int, picker: str, picked: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{picker}/{picked}".encode(), digest_size=8).digest()


def picks(device: str, members: Collection[str], seed: int, k: int) -> list[str]:
    """The k others that a device picks, the best first."""
    others = (name for name in members if name != device)
    return sorted(others, key=lambda name: (_weight(seed, device, name), name))[:k]


def partners(device: str, members: Collection[str], seed: int, k: int) -> set[str]:
    """Those that a device picks and those that pick it: at least k, 2 k on average."""
    mine = set(picks(device, members, seed, k))
    return mine | {name for name in members if name != device and device in picks(name, members, seed, k)}
