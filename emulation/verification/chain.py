"""One chain alone: the form, the signature and the place of each line, and the leaves that it quotes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Status
from emulation.verification.findings import Findings
from peers.storage import leave_wishes, receipt_chain
from peers.storage.receipt_chain import Receipt
from transport.security.keys import verify

LEAVE = "leave"  # the reason of a deletion that is final


@dataclass(frozen=True)
class Chain:
    """The receipts of one device that its key has signed, in the order of the file.

    head: hash of the last line. lines: of the file.
    """

    device: str
    receipts: tuple[Receipt, ...]
    head: str
    lines: int

    @property
    def keys(self) -> set[tuple[str, str]]:
        """The keys that signed the receipts, each with the run of the receipts."""
        return {(r.public, r.run) for r in self.receipts}

    def of_kind(self, *kinds: str) -> list[Receipt]:
        return [r for r in self.receipts if r.kind in kinds]

    def deletions(self, block: BlockKey | None = None) -> list[Receipt]:
        """The deletions of all blocks, or of one block."""
        return [r for r in self.of_kind("deleted") if block is None or r.block == block]

    @property
    def ended_lives(self) -> set[int]:
        return {r.life for r in self.of_kind("end")}


def read(path: Path, device: str, where: str, found: Findings) -> Chain:
    """Read and check a chain. `device`: its owner; "": the first line names it.

    Findings are told of `where`. Raises OSError.
    """
    raw = receipt_chain.read_lines(path)
    is_cut = not path.read_bytes().endswith(b"\n")
    parsed = [_parse(line) for line in raw]
    device = device or next((r.device for r in parsed if isinstance(r, Receipt)), "")
    genuine: list[Receipt | None] = []
    for number, receipt in enumerate(parsed):
        genuine.append(_genuine(number, receipt, device, where, found))
        if isinstance(receipt, str):
            killed = _ended_by_a_kill(number, raw, parsed, is_cut)
            text = "is half a line of a killed process" if killed else f"is no receipt: {receipt}"
            found.add(where, f"line {number + 1} {text}", not killed)
    _check_links(raw, genuine, where, found)
    receipts = tuple(r for r in genuine if r is not None)
    _check_lives(receipts, where, found)
    _check_leaves(receipts, where, found)
    return Chain(device, receipts, receipt_chain.hash_of(raw[-1]) if raw else "", len(raw))


def _parse(raw: bytes) -> Receipt | str:
    """The receipt, or why the line is none."""
    try:
        return receipt_chain.parse(raw)
    except ValueError as error:
        return str(error)


def _ended_by_a_kill(number: int, raw: list[bytes], parsed: list[Receipt | str], is_cut: bool) -> bool:
    """Whether a damaged line is the last one and has no end, or a later life has signed it as it is."""
    if number == len(raw) - 1:
        return is_cut
    after = parsed[number + 1]
    begins = isinstance(after, Receipt) and after.kind == "begin"
    return begins and isinstance(after, Receipt) and after.previous == receipt_chain.hash_of(raw[number])


def _genuine(number: int, receipt: Receipt | str, device: str, where: str, found: Findings) -> Receipt | None:
    """The receipt, if the key that it names has signed it and it is the device's."""
    if isinstance(receipt, str):
        return None
    if not receipt.is_signed(verify):
        found.fault(where, f"line {number + 1} was altered: its signature is not that of its key")
        return None
    if receipt.device != device:
        found.fault(where, f"line {number + 1} is a receipt of another device: {receipt.device}")
        return None
    return receipt


def _check_links(raw: list[bytes], genuine: list[Receipt | None], where: str, found: Findings) -> None:
    """The first line that does not follow the one before. A line after one with a fault is not compared."""
    if not raw:
        found.fault(where, "the chain is empty")
    for number, receipt in enumerate(genuine):
        before = receipt_chain.hash_of(raw[number - 1]) if number else receipt_chain.START
        follows = receipt is None or (receipt.previous, receipt.number) == (before, number)
        if not follows and (number == 0 or genuine[number - 1] is not None):
            place = f"does not follow line {number}" if number else "is not the first one of a chain"
            text = f"line {number + 1} {place}: a line was altered, removed, added or moved"
            found.fault(where, text)
            return


def _check_lives(receipts: Iterable[Receipt], where: str, found: Findings) -> None:
    """A life has one key and one run, begins with `begin`, and has nothing after its `end`."""
    last: Receipt | None = None
    for receipt in receipts:
        line = f"line {receipt.number + 1}"
        if receipt.kind == "begin":
            if last is not None and receipt.life <= last.life:
                found.fault(where, f"{line} begins life {receipt.life} after life {last.life}")
            if last is not None and receipt.run == last.run and receipt.public != last.public:
                found.fault(
                    where, f"life {receipt.life} has another key than life {last.life} of the same run"
                )
        elif last is None or _life(receipt) != _life(last):
            found.fault(where, f"{line} is not of the life, run and key that began before it")
        elif last.kind == "end":
            found.fault(where, f"{line} comes after the end of life {last.life}")
        last = receipt


def _life(receipt: Receipt) -> tuple[int, str, str]:
    return receipt.life, receipt.run, receipt.public


def _check_leaves(receipts: Iterable[Receipt], where: str, found: Findings) -> None:
    """A deletion that is final quotes the leave that the owner of the block has signed."""
    for receipt in receipts:
        if receipt.kind != "deleted" or (receipt.fields["reason"] == LEAVE) == quotes_leave(receipt):
            continue
        text = f"line {receipt.number + 1} has no leave of {receipt.block} that its owner signed"
        found.fault(where, text)


def quotes_leave(receipt: Receipt) -> bool:
    """Whether a `deleted` quotes a genuine leave of its block."""
    record = leave_wishes.from_json(receipt.fields["leave"])
    if record is None or record.status is not Status.LEFT or record.key != receipt.block:
        return False
    return verify(record.public, record.signed_data(), record.signature, receipt.run)
