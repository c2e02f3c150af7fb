"""`unweft keys`, and a device's keys: private files, steps in order, no missing encryption by accident."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from emulation.commands.keys import of_device
from peers.config import KeysConfig
from peers.errors import InputError
from tests.support.command_line import QUICK, unweft
from transport.security.keys import NetworkKeys, generate, load

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_new_keys_are_private_files(monkeypatch: Patch, tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "keys"
    if there:
        folder.mkdir(mode=0o755)
    assert unweft(monkeypatch, "keys", "new", folder, "--devices", "d0, d1") == 0
    assert mode(folder) == 0o700
    assert {file.name: mode(file) for file in folder.iterdir()} == dict.fromkeys(
        ["network.keys", "allowed.json", "d0.curve", "d1.curve"], 0o600
    )
    assert load(folder, "d0").allowed is not None


def test_no_secret_is_printed(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    unweft(monkeypatch, "keys", "new", tmp_path / "keys", "--devices", "d0")
    unweft(monkeypatch, "keys", "rotate", tmp_path / "keys", "install")
    shown, keys = capsys.readouterr().out, load(tmp_path / "keys", "d0")
    assert keys.label(0) in shown and keys.label(1) in shown
    for index in (0, 1):
        pairs = keys.server(index), NetworkKeys(keys.secrets).client(index)
        words = [keys.secrets[index].hex(), *(half.decode() for p in pairs for half in (p.public, p.secret))]
        assert not any(word[:8] in shown for word in words)


def test_a_folder_that_is_not_empty_is_refused(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    assert unweft(monkeypatch, "keys", "new", tmp_path) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_ids_make_no_folder(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    assert unweft(monkeypatch, "keys", "new", tmp_path / "keys", "--devices", "d0,../d1") == 2
    assert "'../d1' is no device id" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_the_steps_of_a_rotation(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "keys"
    (old,) = generate(folder).secrets
    seen = []
    for step in ("install", "use", "remove"):
        assert unweft(monkeypatch, "keys", "rotate", folder, step) == 0
        assert mode(folder / "network.keys") == 0o600
        seen.append(load(folder, "d0").secrets)
    new = seen[0][1]
    assert seen == [(old, new), (new, old), (new,)] and new != old
    assert "unweft keys rotate" in capsys.readouterr().out
    assert [file.name for file in folder.iterdir()] == ["network.keys"]


@pytest.mark.parametrize(
    ("before", "step", "words"),
    [
        ([], "use", "use: there is one key only"),
        ([], "remove", "remove: there is one key only"),
        (["install"], "install", "install: two keys are active already"),
    ],
)
def test_a_step_out_of_turn_changes_nothing(
    monkeypatch: Patch, tmp_path: Path, capsys: Capture, before: list[str], step: str, words: str
) -> None:
    folder = tmp_path / "keys"
    generate(folder)
    for done in before:
        unweft(monkeypatch, "keys", "rotate", folder, done)
    keys = load(folder, "d0")
    assert unweft(monkeypatch, "keys", "rotate", folder, step) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert load(folder, "d0") == keys


def test_a_folder_without_keys_cannot_be_rotated(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    assert unweft(monkeypatch, "keys", "rotate", tmp_path, "install") == 2
    assert "network.keys: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["new", "rotate"])
def test_help_carries_an_example(monkeypatch: Patch, capsys: Capture, command: str) -> None:
    assert unweft(monkeypatch, "keys", command, "--help") == 0
    assert f"Example: unweft keys {command}" in capsys.readouterr().out


def device(monkeypatch: Patch, folder: Path, *more: object) -> int:
    flags = ("--id", "d0", "--listen", "tcp://127.0.0.1:7000", "--out", folder / "out", "--scenario", QUICK)
    return unweft(monkeypatch, "device", *flags, *more)


def test_a_device_without_keys_prints_how_to_make_them(
    monkeypatch: Patch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.delenv("UNWEFT_KEYS", raising=False)
    assert device(monkeypatch, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("unweft: --keys: missing") and error.count("\n") == 1
    assert "unweft keys new" in error and "keys.enabled=false" in error
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_listed_is_refused(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    generate(tmp_path / "keys", ["d1"])
    monkeypatch.setenv("UNWEFT_KEYS", str(tmp_path / "keys"))
    assert device(monkeypatch, tmp_path) == 2
    assert "d0.curve: No such file" in capsys.readouterr().err


def test_a_missing_allow_list_is_bad_input(monkeypatch: Patch, tmp_path: Path, capsys: Capture) -> None:
    generate(tmp_path / "keys")
    options = ("--keys", tmp_path / "keys", "--set", "keys.allow_list=true")
    assert device(monkeypatch, tmp_path, *options) == 2
    assert "has no allow-list" in capsys.readouterr().err


def test_the_keys_that_a_device_uses(tmp_path: Path) -> None:
    made = generate(tmp_path / "keys")
    assert of_device(KeysConfig(), tmp_path / "keys", "d0") == made
    assert of_device(KeysConfig(enabled=False), tmp_path / "keys", "d0") is None
    assert of_device(KeysConfig(enabled=False), None, "d0") is None
    with pytest.raises(InputError, match="missing"):
        of_device(KeysConfig(), None, "d0")
