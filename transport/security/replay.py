"""Which numbers of a source have been here: in the clear, a message can be sent again. Sans-I/O.

A window that slides, as that of IPsec (RFC 4303, section 3.4.3): a link that is made anew may overtake the
one before it, so numbers need not come in order, but each is good once and none is good that is far behind.
CURVE needs none of this: it numbers what it encrypts.
"""

from __future__ import annotations

WINDOW = 1 << 14  # numbers: more than two links hold of one source
MAX_SOURCES = 4096  # sources are claims: whoever invents names must not take memory without end


class ReplayGuard:
    """A source starts again with higher numbers than it has used before; who does not is not heard."""

    def __init__(self) -> None:
        # by source: its highest number n, and bits: the k-th tells whether n - k was here
        self._seen: dict[str, tuple[int, int]] = {}

    def fresh(self, source: str, number: int) -> bool:
        """Whether this number of a source is here for the first time; it is not from then on."""
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
