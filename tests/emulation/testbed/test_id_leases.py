"""Ids that devices claim: no two devices have the same, and a device that returns has its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.testbed import id_leases
from emulation.testbed.id_leases import Claim, claim

ROOT = Path(__file__).parents[3]


def held(run: Path, tokens: str) -> list[Claim]:
    return [claim(run, "d", token) for token in tokens]


def release(*taken: Claim) -> None:
    for one in taken:
        one.release()


def test_ids_are_taken_from_the_lowest_number_on(tmp_path: Path) -> None:
    taken = held(tmp_path, "abc")
    assert [one.id for one in taken] == ["d0", "d1", "d2"]
    release(*taken)


def test_an_id_is_taken_once_even_when_its_device_is_gone(tmp_path: Path) -> None:
    release(*held(tmp_path, "ab"))
    (third,) = held(tmp_path, "c")
    assert third.id == "d2"
    release(third)


def test_the_same_token_gets_the_same_id_again(tmp_path: Path) -> None:
    release(*held(tmp_path, "abc"))
    again = held(tmp_path, "cba")
    assert [one.id for one in again] == ["d2", "d1", "d0"]
    release(*again)


def test_a_live_token_gets_a_second_id(tmp_path: Path) -> None:
    """Of two containers with one identity, the second is another device."""
    taken = held(tmp_path, "aa")
    assert [one.id for one in taken] == ["d0", "d1"]
    release(*taken)


def test_a_claim_names_the_host_of_its_device(tmp_path: Path) -> None:
    taken = held(tmp_path, "a")
    assert id_leases.owners(tmp_path) == {"d0": socket.gethostname()}
    release(*taken)


def test_a_device_is_alive_until_its_process_ends(tmp_path: Path) -> None:
    assert not id_leases.any_claimed(tmp_path) and not id_leases.any_alive(tmp_path)
    code = (
        "import sys; from pathlib import Path; from emulation.testbed.id_leases import claim; "
        "claim(Path(sys.argv[1]), 'd', 'a'); print('claimed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as device:
        assert device.stdout is not None and device.stdout.readline() == b"claimed\n"
        assert id_leases.any_alive(tmp_path)
        device.kill()
        device.wait()
    assert id_leases.any_claimed(tmp_path) and not id_leases.any_alive(tmp_path)


def test_two_devices_that_claim_at_once_get_different_ids(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other device claims between the look at existing ids and the own claim."""
    there, others = id_leases._paths, []

    def looked(run: Path) -> list[Path]:
        found = there(run)
        monkeypatch.setattr(id_leases, "_paths", there)
        others.append(claim(run, "d", "other"))
        return found

    monkeypatch.setattr(id_leases, "_paths", looked)
    mine = claim(tmp_path, "d", "mine")
    assert (others[0].id, mine.id) == ("d0", "d1")
    release(mine, *others)


def test_releasing_a_claim_releases_its_lock(tmp_path: Path) -> None:
    (taken,) = held(tmp_path, "a")
    os.fstat(taken.descriptor)
    taken.release()
    assert not id_leases.any_alive(tmp_path)
