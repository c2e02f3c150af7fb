"""Refusal of replayed messages on links without encryption. Sans-I/O.

A sliding window of sequence numbers per source, as in IPsec (RFC 4303, section 3.4.3). A new link may
overtake the one before it, so numbers need not come in order. Each number is valid once, and numbers far
behind the highest are not valid. CURVE needs no such window: it numbers its encrypted messages itself.
"""

from __future__ import annotations

WINDOW = 1 << 14  # numbers per source: more than two links hold
MAX_SOURCES = 4096  # source names are unverified; bounds the memory that invented names can take


class ReplayGuard:
    """The numbers seen of each source. A source that restarts must continue with higher numbers."""

    def __init__(self) -> None:
        # by source: the highest number n, and bits of which the k-th tells whether n - k was seen
        self._seen: dict[str, tuple[int, int]] = {}

    def fresh(self, source: str, number: int) -> bool:
        """Record a number. Returns whether it is valid and new."""
        newest, bits = self._seen.get(source, (number, 0))
        ahead = number - newest
        if ahead > 0:
            newest, bits = number, (bits << ahead) % (1 << WINDOW) if ahead < WINDOW else 0
        behind = newest - number
        if behind >= WINDOW or bits >> behind & 1:
            return False
        if source not in self._seen and len(self._seen) >= MAX_SOURCES:
            del self._seen[next(iter(self._seen))]
        self._seen[source] = newest, bits | 1 << behind
        return True
