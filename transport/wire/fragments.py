"""Split payloads into fragments, and reassemble fragments into payloads within bounded memory. Sans-I/O.

A message of Updates carries one fragment, or whole payloads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from transport.wire.checksum import xxh3
from transport.wire.errors import WireError
from transport.wire.messages import Buffer, Update


def split(payload: Buffer, part_bytes: int) -> list[memoryview]:
    """Views of consecutive fragments; fragment i starts at i * part_bytes.

    Raises ValueError for an empty payload.
    """
    if not len(payload) or part_bytes < 1:
        raise ValueError("an empty payload or fragment size cannot be split")
    view = memoryview(payload)
    return [view[at : at + part_bytes] for at in range(0, len(view), part_bytes)]


SHARES = 8  # a source may have this part of all bytes of unfinished updates, or one update
_Key = tuple[str, str, int, str]  # source, block's device and incarnation, group
_IDENTITY = attrgetter("version", "total", "codec", "rows", "rank", "xxh3", "cause", "round")


@dataclass(slots=True)
class _Unfinished:
    """An update of which only the first `filled` bytes have arrived."""

    first: Update
    data: bytearray
    filled: int = 0

    def fits(self, part: Update, size: int) -> bool:
        """Whether the fragment starts at the end of the last one and belongs to the same update."""
        return (
            part.offset == self.filled
            and part.offset + size <= part.total
            and _IDENTITY(part) == _IDENTITY(self.first)
        )


class Reassembler:
    """Reassembles payloads within `max_bytes_in_flight`.

    The fragments of an update arrive in order on a link.

    `expected(src, part)`: None, or why a fragment is refused (an unknown block, another shape or size). An
    unfinished update is abandoned when its source starts a newer version or sends the same one again.
    `abandoned`, `abandoned_bytes`: number of abandoned updates and the bytes that had arrived of them.
    """

    def __init__(
        self, max_bytes_in_flight: int, expected: Callable[[str, Update], str | None] = lambda src, part: None
    ) -> None:
        self._limit, self._expected = max_bytes_in_flight, expected
        self._unfinished: dict[_Key, _Unfinished] = {}
        self.bytes_in_flight = self.abandoned = self.abandoned_bytes = 0

    def add_fragment(self, src: str, part: Update, payload: Buffer) -> Buffer | bytearray | None:
        """Add a fragment. Returns the whole payload once the last one has arrived, else None.

        The payload then belongs to the caller. A fragment that is a whole payload is returned without a copy.
        Raises WireError for a fragment that does not fit.
        """
        reason = self._expected(src, part)
        if reason is not None:
            raise WireError(reason)
        key = (src, part.block, part.block_incarnation, part.group)
        if part.offset == 0 and len(payload) == part.total:
            self._replace(key, part)
            _check(payload, part)
            return payload
        entry = self._begin(key, part) if part.offset == 0 else self._continue(key, part)
        if not entry.fits(part, len(payload)):
            self._give_up(key)
            raise WireError("fragments of an update overlap, leave a gap or do not agree")
        entry.data[part.offset : part.offset + len(payload)] = payload
        entry.filled += len(payload)
        if entry.filled < part.total:
            return None
        self._remove(key)
        _check(entry.data, part)
        return entry.data

    def drop_block(self, block: str, incarnation: int) -> int:
        """Forget and overwrite the unfinished updates of a deleted block. Returns how many there were."""
        doomed = [key for key in self._unfinished if key[1:3] == (block, incarnation)]
        for entry in map(self._remove, doomed):
            if entry is not None:
                entry.data[:] = bytes(len(entry.data))
        return len(doomed)

    def drop_source(self, src: str) -> int:
        """Forget the unfinished updates of a lost link. Returns how many there were."""
        return sum(self._remove(key) is not None for key in [k for k in self._unfinished if k[0] == src])

    def _replace(self, key: _Key, part: Update) -> None:
        """An update begins: abandon an unfinished one that is older or the same."""
        old = self._unfinished.get(key)
        if old is not None and part.version < old.first.version:
            raise WireError("a newer version has replaced this update")
        self._give_up(key)

    def _begin(self, key: _Key, part: Update) -> _Unfinished:
        self._replace(key, part)
        if self.bytes_in_flight + part.total > self._limit:
            raise WireError("too many bytes of unfinished updates")
        of_source = sum(len(entry.data) for (src, *_), entry in self._unfinished.items() if src == key[0])
        if of_source and of_source + part.total > self._limit // SHARES:
            raise WireError("too many bytes of unfinished updates of one source")
        self.bytes_in_flight += part.total
        entry = self._unfinished[key] = _Unfinished(part, bytearray(part.total))
        return entry

    def _continue(self, key: _Key, part: Update) -> _Unfinished:
        entry = self._unfinished.get(key)
        if entry is not None and part.version > entry.first.version:
            self._give_up(key)
            entry = None
        if entry is None or part.version < entry.first.version:
            raise WireError("a fragment of an update whose first fragment is missing")
        return entry

    def _give_up(self, key: _Key) -> None:
        entry = self._remove(key)
        if entry is not None:
            self.abandoned += 1
            self.abandoned_bytes += entry.filled

    def _remove(self, key: _Key) -> _Unfinished | None:
        entry = self._unfinished.pop(key, None)
        self.bytes_in_flight -= len(entry.data) if entry else 0
        return entry


def _check(payload: Buffer | bytearray, update: Update) -> None:
    if update.xxh3 is not None and xxh3(payload) != update.xxh3:
        raise WireError("the checksum of an update does not match")
