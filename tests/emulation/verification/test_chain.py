"""One chain alone: each change that a forger can make to it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulation.verification import chain
from emulation.verification.findings import Findings
from peers.storage.receipt_chain import canonical
from tests.support import receipts
from tests.support.receipts import LEAVER, OTHER, OWNER, leave, resign

Lines = list[bytes]


def check(path: Path) -> tuple[list[str], list[str]]:
    """The texts of faults and notes."""
    found = Findings()
    chain.read(path, "d0", "chain", found)
    return [f.text for f in found.faults], [n.text for n in found.notes]


def test_an_honest_chain_holds(tmp_path: Path) -> None:
    path, found = receipts.write(tmp_path), Findings()
    read = chain.read(path, "", "chain", found)
    assert (found.faults, found.notes) == ([], [])
    assert (read.device, read.lines, len(read.deletions()), read.ended_lives) == ("d0", 5, 1, {0})


def altered(lines: Lines) -> Lines:
    return [lines[0], lines[1].replace(b'"t_s":1.5', b'"t_s":2.5'), *lines[2:]]


def spaced(lines: Lines) -> Lines:
    return [lines[0], json.dumps(json.loads(lines[1])).encode(), *lines[2:]]


def forged(lines: Lines) -> Lines:
    line = json.loads(lines[1])
    return [lines[0], canonical({**line, "signature": "00" * 64}), *lines[2:]]


def with_key(lines: Lines) -> Lines:
    """One line by another key, with the right place in the chain, and the lines after it as they were."""
    return [lines[0], resign(lines, OTHER)[1], *lines[2:]]


def of_another(lines: Lines) -> Lines:
    """A line of another device's chain, in place of the own one."""
    return [lines[0], resign(lines, OTHER, lambda line: line.update(device="d1"))[1], *lines[2:]]


def after_the_end(lines: Lines) -> Lines:
    return resign([*lines, lines[2]], OWNER)


def second_life(lines: Lines) -> Lines:
    return resign([*lines, *lines], OWNER)


def another_key_later(lines: Lines) -> Lines:
    """A second life with another key in the same run."""
    later = resign([*lines, *lines], OTHER, lambda line: line.update(life=1))
    return [*lines, *later[5:]]


BELONGS = "is not of the life, run and key that began before it"
CHANGES: dict[str, tuple[Callable[[Lines], Lines], list[str]]] = {
    "altered": (altered, ["line 2 was altered: its signature"]),
    "spaced": (spaced, ["line 2 is no receipt"]),
    "forged": (forged, ["line 2 was altered: its signature"]),
    "with key": (with_key, ["line 2 does not follow line 1", f"line 2 {BELONGS}", f"line 3 {BELONGS}"]),
    "of another": (of_another, ["line 2 is a receipt of another device: d1"]),
    "removed": (lambda lines: [lines[0], *lines[2:]], ["line 2 does not follow line 1"]),
    "first removed": (lambda lines: lines[1:], ["line 1 is not the first one", f"line 2 {BELONGS}"]),
    "moved": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], ["line 2 does not follow line 1"]),
    "repeated": (lambda lines: [*lines[:2], *lines[1:]], ["line 3 does not follow line 2"]),
    "garbage": (lambda lines: [*lines, b"x"], ["line 6 is no receipt"]),
    "empty": (lambda lines: [], ["the chain is empty"]),
    "after the end": (after_the_end, ["line 6 comes after the end of life 0"]),
    "second life": (second_life, ["line 6 begins life 0 after life 0"]),
    "another key later": (
        another_key_later,
        ["line 6 does not follow", "life 1 has another key than life 0"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_chain_is_found(tmp_path: Path, name: str) -> None:
    path = receipts.write(tmp_path)
    edit, expected = CHANGES[name]
    receipts.change(path, edit)
    faults, notes = check(path)
    assert notes == []
    assert [fault[: len(text)] for fault, text in zip(faults, expected, strict=True)] == expected


def test_a_run_that_goes_on_has_another_name_and_other_keys(tmp_path: Path) -> None:
    path = receipts.write(tmp_path)
    receipts.begin(receipts.chain(tmp_path, life=1, signer=receipts.identity(9, "another-run")))
    assert check(path) == ([], [])


def test_the_holder_of_the_key_can_shorten_its_chain_so_other_records_have_to_tell(tmp_path: Path) -> None:
    path = receipts.write(tmp_path)
    receipts.change(path, lambda lines: lines[:1])
    assert check(path) == ([], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"leave": None},
        {"leave": leave(signer=OWNER) | {"public": LEAVER.public.hex()}},
        {"leave": leave("d3")},
        {"leave": leave() | {"status": 0}},
        {"leave": {"device": "d2"}},
        {"reason": "crash"},
    ],
)
def test_a_deletion_without_a_genuine_leave_is_not_final(tmp_path: Path, changes: dict[str, Any]) -> None:
    written = receipts.chain(tmp_path)
    receipts.begin(written)
    receipts.deleted(written, **changes)
    faults, _ = check(tmp_path / "receipts.jsonl")
    assert faults == ["line 2 has no leave of d2@0 that its owner signed"]


def test_half_a_line_of_a_killed_process_is_a_note(tmp_path: Path) -> None:
    path = receipts.write(tmp_path)
    receipts.change(path, lambda lines: lines[:3])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"half')
    assert check(path) == ([], ["line 4 is half a line of a killed process"])
    receipts.begin(receipts.chain(tmp_path, life=1))
    assert check(path) == ([], ["line 4 is half a line of a killed process"])
    receipts.change(path, lambda lines: [*lines[:3], b'{"other', lines[4]])
    faults, _ = check(path)
    assert [fault[:20] for fault in faults] == ["line 4 is no receipt"]
