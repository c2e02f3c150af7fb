"""What a device has sent in the round that is open, for its line in metrics.jsonl."""

from __future__ import annotations

from collections import Counter

from peers.protocol.exchange import Plan
from peers.protocol.overhead_offset import PartBytes


class SentCount:
    """`codec`: of the parts for which a plan names no other one."""

    def __init__(self, codec: str, part_bytes: PartBytes) -> None:
        self._codec, self._part_bytes = codec, part_bytes
        self.start_round()

    def start_round(self) -> None:
        """Nothing has been sent in this round."""
        self.matrices: dict[str, Counter[str]] = {}  # number by group and codec
        self.withheld: dict[str, int] = {}  # parts that were owed and not sent, by peer
        self.block_bytes = Counter[str]()  # by block, to all neighbours, with headers and framing

    def add(self, peer: str, plan: Plan) -> int:
        """Count the parts of a plan for a peer; returns their bytes."""
        self.withheld[peer], whole = plan.withheld, 0
        for part, _, _ in plan.parts:
            codec = plan.codecs.get(part, self._codec)
            size = self._part_bytes(part.group, codec)
            self.matrices.setdefault(part.group, Counter())[codec] += 1
            self.block_bytes[str(part.block)] += size
            whole += size
        return whole
