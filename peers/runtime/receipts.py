"""The receipts of one device: each thing that the protocol decided about a block, once it is done.

A receipt is queued behind the work of the learner that it is about, so the file never says more than was
done. Its time and its round are those of the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from peers.learning.learner import Learner
from peers.protocol import actions as do
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.learner_thread import LearnerThread
from peers.storage import leave_wishes, receipt_chain
from peers.storage.receipt_chain import Fields, ReceiptChain
from peers.storage.tensor_file import values_sha256
from peers.unlearning import adapter_hashes
from peers.unlearning.deletion_receipt import DeletionReceipt


class Receipts:
    """Appends to the device's chain. Public methods run in the event loop.

    `chain`: None without `membership.receipts`; then nothing is written. `seconds`: the time of the run now.
    """

    def __init__(
        self,
        chain: ReceiptChain | None,
        learner_thread: LearnerThread,
        learner: Learner,
        protocol: DeviceProtocol,
        seconds: Callable[[], float],
    ) -> None:
        self._chain, self._learner_thread, self._learner = chain, learner_thread, learner
        self._protocol, self._seconds = protocol, seconds

    def begin(self) -> None:
        """The device starts."""
        self._append("begin", lambda: {"format": receipt_chain.FORMAT})

    def drop_block(self, action: do.DropBlock) -> Future[DeletionReceipt | None]:
        """Delete a block (`LearnerThread.drop_block`), with a receipt if the device held it."""
        if self._chain is None:
            return self._learner_thread.drop_block(action)
        key, leave, members = action.key, self._protocol.members.get(action.key), self._members(action.key)
        before = self._learner_thread.submit(partial(self._values, key))
        deletion = self._learner_thread.drop_block(action)

        def receipt() -> Fields | None:
            hashes = deletion.result()
            if hashes is None:
                return None
            return {
                "block": str(key),
                "reason": action.reason,
                "sha256_before": hashes.sha256_before,
                "sha256_after": hashes.sha256_after,
                "values": before.result(),
                "leave": _leave(leave),
                "members": members,
            }

        self._append("deleted", receipt)
        return deletion

    def confirmed(self, action: do.Confirmed) -> None:
        """A device says that it holds no copy of a block. Its message is not signed."""
        self._append("confirmed", lambda: {"block": str(action.key), "who": action.who})

    def exported(self, exporting: Future[str], folder: Path) -> None:
        """The adapter is in its folder. The chain goes there too."""
        members = self._members()

        def receipt() -> Fields:
            found = adapter_hashes.read(folder)
            blocks = {str(key): digest for key, digest in found.merged.items()}
            return {"adapter_sha256": exporting.result(), "blocks": blocks, "members": members}

        self._append("exported", receipt)
        if self._chain is not None:
            self._learner_thread.submit(partial(receipt_chain.keep, self._chain.folder, folder))

    def end(self, reason: str) -> None:
        """The device ends in order, and holds these blocks."""
        blocks, members = sorted(map(str, self._protocol.blocks)), self._members()
        self._append("end", lambda: {"reason": reason, "blocks": blocks, "members": members})

    def _append(self, kind: str, fields: Callable[[], Fields | None]) -> None:
        """Queue a receipt. `fields` runs in the learner thread; None: there is nothing to write."""
        chain, round_, t_s = self._chain, self._protocol.round, self._seconds()
        if chain is None:
            return

        def write() -> None:
            found = fields()
            if found is not None:
                chain.append(kind, round_, t_s, found)

        self._learner_thread.submit(write)

    def _members(self, gone: BlockKey | None = None) -> dict[str, str]:
        """The public keys of the live members and of the owner of a deleted block, by device."""
        members = self._protocol.members
        found = [*members.alive().values(), *([members.get(gone)] if gone else [])]
        return {record.device: record.public.hex() for record in found if record is not None}

    def _values(self, key: BlockKey) -> dict[str, str]:
        """SHA-256 of the block's values, by group. Groups that are zero have none: all zeros are equal."""
        if not self._learner.has(key):
            return {}
        values = {group: self._learner.read(key, group) for group in self._learner.groups}
        return {group: values_sha256(matrix) for group, matrix in values.items() if bool(matrix.any())}


def _leave(record: Record | None) -> Fields | None:
    """The signed record of a leave, which makes the deletion final."""
    return None if record is None or record.status is not Status.LEFT else leave_wishes.to_json(record)
