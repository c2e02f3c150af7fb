"""The assembly of updates: fragments in, decoded matrices out, within bounded memory.

It is apart from delivery.py because it knows nothing of links, time or peers: only of shapes and bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from coordinator_free.identifiers import BlockKey
from transport.wire.codec_names import payload_bytes
from transport.wire.errors import WireError
from transport.wire.fragments import Reassembler
from transport.wire.messages import Buffer, Update
from transport.wire.tensor_codec import decode

if TYPE_CHECKING:
    from peers.learning.learner import Learner

BLOCKS_IN_FLIGHT = 64  # bound on unfinished updates, in blocks of fp32 values


class WholeUpdate(NamedTuple):
    """A complete update. matrix: fp32 [rows, rank]; it may share memory with a payload of its own."""

    matrix: Tensor
    payload: Buffer | bytearray


class UpdateAssembly:
    """Collects the fragments of updates that the protocol has admitted."""

    def __init__(self, learner: Learner) -> None:
        self._rows = {group: learner.layout.rows(group) for group in learner.groups}
        self._ranks = {group: learner.layout.rank(group) for group in learner.groups}
        whole = sum(4 * self._rows[group] * self._ranks[group] for group in learner.groups)
        self._fragments = Reassembler(max_bytes_in_flight=BLOCKS_IN_FLIGHT * whole)

    def add_fragment(
        self, source: str, header: Update, fragment: Buffer, shared: bool = False
    ) -> WholeUpdate | None:
        """The update, once its last fragment is here. Raises WireError for a bad fragment or matrix.

        shared: the fragment is a part of a frame with other matrices. The matrix then has memory of its own,
        so that it does not keep the frame.
        """
        self._check_shape(header)
        payload = self._fragments.add_fragment(source, header, fragment)
        if payload is None:
            return None
        matrix = decode(payload, header.codec, header.rows, header.rank, owned=not shared)
        return WholeUpdate(matrix, payload)

    def drop_source(self, peer: str) -> None:
        """Forget the unfinished updates of a peer."""
        self._fragments.drop_source(peer)

    def drop_block(self, block: BlockKey) -> None:
        """Forget the unfinished updates of a deleted block."""
        self._fragments.drop_block(block.device, block.incarnation)

    def _check_shape(self, header: Update) -> None:
        rows, rank = self._rows.get(header.group), self._ranks.get(header.group)
        if (header.rows, header.rank) != (rows, rank):
            raise WireError(f"{header.group} is {rows} x {rank} here, {header.rows} x {header.rank} there")
        if header.total != payload_bytes(header.codec, header.rows, header.rank):
            raise WireError(f"{header.total} bytes are not the size of a {header.codec} payload of its shape")
