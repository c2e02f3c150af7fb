"""Receipt chains on disk: one form for each line, and lives that go on where others ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.storage import receipt_chain
from tests.support import receipts
from transport.security.keys import verify


def test_each_line_is_signed_and_has_the_hash_of_the_line_before(tmp_path: Path) -> None:
    lines = receipt_chain.read_lines(receipts.write(tmp_path))
    read = [receipt_chain.parse(line) for line in lines]
    assert [r.kind for r in read] == ["begin", "deleted", "confirmed", "exported", "end"]
    assert [r.number for r in read] == [0, 1, 2, 3, 4]
    assert [r.previous for r in read] == [receipt_chain.START, *map(receipt_chain.hash_of, lines[:-1])]
    assert all(r.is_signed(verify) for r in read)
    assert str(read[1].block) == "d2@0" and read[1].fields["reason"] == "leave"


def test_a_signature_holds_for_one_run_only(tmp_path: Path) -> None:
    first = receipt_chain.parse(receipt_chain.read_lines(receipts.write(tmp_path))[0])
    assert not first.is_signed(lambda public, data, signature, run: verify(public, data, signature, "other"))


def test_a_later_life_goes_on_after_half_a_line(tmp_path: Path) -> None:
    path = receipts.write(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"block":"d1')
    later = receipts.chain(tmp_path, life=1)
    receipts.begin(later)
    *_, half, last = receipt_chain.read_lines(path)
    read = receipt_chain.parse(last)
    assert (half, read.number, read.previous) == (b'{"block":"d1', 6, receipt_chain.hash_of(half))


def test_the_file_is_read_at_the_first_receipt(tmp_path: Path) -> None:
    """In virtual time, the later life of a device is made before the earlier one has written its lines."""
    later = receipts.chain(tmp_path, life=1)
    path = receipts.write(tmp_path)
    receipts.begin(later)
    assert receipt_chain.parse(receipt_chain.read_lines(path)[-1]).number == 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"life":0', b'"life": 0'),
        (b'"life":0', b'"life":false'),
        (b'"life":0', b'"life":0,"more":1'),
        (b'"life":0,', b""),
        (b'"kind":"deleted"', b'"kind":"forgot"'),
        (b'"kind":"deleted"', b'"kind":["deleted"]'),
        (b'"block":"d2@0"', b'"block":"d2"'),
        (b'"block":"d2@0"', b'"block":"d2@00"'),
        (b'"t_s":1.5', b'"t_s":1e999'),
        (b'"members":{"d1":"', b'"members":{"d1":"zz'),
        (b'"previous":"', b'"previous":"zz'),
        (b'"run":"a-run"', b'"run":"\\u001b[2J"'),
        (b'"device":"d0"', b'"device":"../d0"'),
        (b'"block":"d2@0"', b'"block":"d/2@0"'),
    ],
)
def test_a_line_in_another_form_is_no_receipt(tmp_path: Path, old: bytes, new: bytes) -> None:
    line = receipt_chain.read_lines(receipts.write(tmp_path))[1]
    assert old in line
    with pytest.raises(ValueError, match=r"."):
        receipt_chain.parse(line.replace(old, new, 1))


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_any_other_line_is_no_receipt(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        receipt_chain.parse(line)
