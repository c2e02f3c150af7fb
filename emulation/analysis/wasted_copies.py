"""Bytes of copies that a deletion made useless soon after they were sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import Record, RunRecords


def deletions(run: RunRecords) -> dict[str, int]:
    """Block -> the first round in which a device deleted it."""
    found: dict[str, int] = {}
    for event in (event for events in run.events.values() for event in events):
        if event["event"] == "deleted":
            block = str(BlockKey(str(event["peer"]), int(event["incarnation"])))
            found[block] = min(int(event["round"]), found.get(block, int(event["round"])))
    return found


def copy_bytes(run: RunRecords) -> int:
    """The bytes of all copies that all devices sent, with headers and framing."""
    return sum(size for _, _, size in _sent(run))


def wasted_bytes(run: RunRecords, horizon: int) -> int:
    """The bytes of copies of blocks that were deleted within `horizon` rounds after they were sent.

    A copy that is sent after the first deletion of its block counts too.
    """
    deleted = deletions(run)
    return sum(
        size for round_, block, size in _sent(run) if block in deleted and deleted[block] - round_ < horizon
    )


def _sent(run: RunRecords) -> Iterator[tuple[int, str, int]]:
    """Round, block and bytes of what was sent. A crashed life has no line of its last, open round."""
    lines: Iterable[Record] = (line for lines in run.metrics.values() for line in lines)
    return (
        (int(line["round"]), block, int(size))
        for line in lines
        for block, size in line.get("block_bytes", {}).items()
    )
