"""Payloads of matrices for the neighbours: encoding, error feedback, signing and a cache.

`PayloadEncoder.encode` runs in the learner thread, because it reads the model. The other public methods run
in the event loop. The driver waits for each `encode` before it performs the next action, so the two threads
never use the cache at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.seeded_random import blake2b_128, generator
from peers.learning.assumed_copies import AssumedCopies
from peers.learning.learner import Learner
from peers.learning.neighbour_copies import NeighbourCopies
from peers.lora.blocks import overwrite
from peers.protocol.actions import Publish
from peers.protocol.signed_versions import Versions
from peers.runtime.spec import DeviceSpec
from transport.links.endpoints import is_socket_file
from transport.wire.checksum import xxh3
from transport.wire.codec_names import FEEDBACK
from transport.wire.messages import Update
from transport.wire.packing import pack_header
from transport.wire.tensor_codec import decode, encode, encode_feedback, encode_view

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Payload:
    """One version of a part, encoded in one codec for all neighbours."""

    part: Part
    version: int
    codec: str
    data: bytes | memoryview
    rows: int
    rank: int
    xxh3: int | None  # None: CURVE authenticates the bytes, or they do not leave this machine
    signature: bytes | None
    decoded: Tensor | None = None  # [rows, rank] as the receiver decodes it; only where it is kept
    _packed: dict[tuple[int, str], bytes] = field(default_factory=dict)

    def header(self, round_: int, cause: str) -> bytes:
        """The packed header for a message of `round_`. Packed once for all neighbours."""
        key = (round_, cause)
        if key not in self._packed:
            self._packed.clear()
            self._packed[key] = pack_header(self.update(round_, cause))
        return self._packed[key]

    def update(self, round_: int, cause: str) -> Update:
        """The header; that of the first fragment of a long payload."""
        return Update(
            block=self.part.block.device,
            block_incarnation=self.part.block.incarnation,
            group=self.part.group,
            version=self.version,
            round=round_,
            cause=cause,
            codec=self.codec,
            rows=self.rows,
            rank=self.rank,
            offset=0,
            total=len(self.data),
            xxh3=self.xxh3,
            signature=self.signature,
        )


class PayloadEncoder:
    """Encodes each version of a part once in each codec. See the module for the thread of each method."""

    def __init__(
        self,
        spec: DeviceSpec,
        learner: Learner,
        versions: Versions | None = None,
        copies: NeighbourCopies | None = None,
        assumed: AssumedCopies | None = None,
    ) -> None:
        """`versions`: None in a mode without signed versions. `copies`: None without an allocator. `assumed`:
        None if every copy is sent (similar_copies.py)."""
        self._learner, self._versions, self._copies = learner, versions, copies
        self._keepers = [keeper for keeper in (copies, assumed) if keeper is not None]
        self._codec = spec.config.radio.codec
        # The links of a socket file go to other socket files only, and memory alters no bytes.
        self._checks = spec.keys is None and not is_socket_file(spec.listen)
        self._seed = (spec.config.seed, spec.id)
        self._cache: dict[Part, tuple[int, dict[str, Payload]]] = {}  # version, payloads by codec
        self._errors: dict[Part, Tensor] = {}  # rounding errors that the next version of a part carries

    # -- in the event loop -----------------------------------------------------------------------------
    def cached(self, action: Publish) -> dict[Part, Payload] | None:
        """The result of `encode` if every payload is in the cache; else None."""
        if self._keepers:  # `encode` must keep what the neighbour decodes
            return None
        found = {}
        for part, version, _ in action.parts:
            payload = self._find(part, version, action.codecs.get(part, self._codec))
            if payload is None:
                return None
            found[part] = payload
        return found

    def drop_cached(self, block: BlockKey) -> None:
        """The refit changed the block without a new version: encode it again."""
        _drop(self._cache, block)

    def purge(self, block: BlockKey) -> None:
        """Deletion: keep no payload and no rounding error of the block. Overwrite what only this class has.

        Encoded bytes may still be on their way in a socket, so they are not overwritten.
        """
        for _, payloads in _drop(self._cache, block):
            overwrite(p.decoded for p in payloads.values() if p.decoded is not None)
        overwrite(_drop(self._errors, block))

    def _find(self, part: Part, version: int, codec: str) -> Payload | None:
        kept = self._cache.get(part)
        return None if kept is None or kept[0] != version else kept[1].get(codec)

    # -- in the learner thread -------------------------------------------------------------------------
    def encode(self, action: Publish) -> dict[Part, Payload]:
        """The payloads of all parts of an action. Keep what the neighbour decodes, if it is needed."""
        payloads = {}
        for part, version, _ in action.parts:
            codec = action.codecs.get(part, self._codec)
            payload = payloads[part] = self._find(part, version, codec) or self._make(part, version, codec)
            if payload.decoded is not None:
                for keeper in self._keepers:
                    keeper.store_copy(action.peer, part, payload.decoded)
        return payloads

    def _make(self, part: Part, version: int, codec: str) -> Payload:
        data, signature = self._signed(part, version, codec)
        checksum = xxh3(data) if self._checks else None
        rows, rank = self._learner.layout.rows(part.group), self._learner.layout.rank(part.group)
        decoded = decode(data, codec, rows, rank) if self._keepers else None
        payload = Payload(part, version, codec, data, rows, rank, checksum, signature, decoded)
        kept = self._cache.get(part)
        if kept is None or kept[0] != version:
            kept = self._cache[part] = (version, {})
        kept[1][codec] = payload
        return payload

    def _signed(self, part: Part, version: int, codec: str) -> tuple[bytes | memoryview, bytes | None]:
        """A version's bytes and its owner's signature. Those of a foreign block are relayed unchanged."""
        if self._versions is None:
            return self._encoded(part, version, codec), None
        copy = self._versions.relayed(part, version)
        if copy is not None:
            return copy.payload, copy.signature
        data = self._encoded(part, version, codec)
        return data, self._versions.sign(part, version, codec, data)

    def _encoded(self, part: Part, version: int, codec: str) -> bytes | memoryview:
        """int8 and int4 carry the rounding error of earlier versions over (error feedback).

        There is no error feedback if neighbours get different codecs. An allocator knows the error of each
        neighbour's copy.
        """
        matrix = self._learner.read(part.block, part.group)
        if codec not in FEEDBACK:
            return encode_view(matrix, codec)  # a view is safe: `read` returns a copy
        draw = generator(repr((*self._seed, *part.block, part.group, version)), digest=blake2b_128)
        if self._copies is not None or codec != self._codec:
            return encode(matrix, codec, draw)
        data, self._errors[part] = encode_feedback(matrix, codec, draw, self._errors.get(part))
        return data


def _drop(kept: dict[Part, Value], block: BlockKey) -> list[Value]:
    return [kept.pop(part) for part in [part for part in kept if part.block == block]]
