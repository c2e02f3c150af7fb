"""Key material: private files, strict loading, the steps of a rotation, signatures."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path

import pytest

from transport.security.keys import CurvePair, DeviceIdentity, NetworkKeys, generate, load, verify

OLD, NEW, THIRD = bytes(32), b"\1" * 32, b"\2" * 32


def test_generated_material_loads_and_is_private(tmp_path: Path) -> None:
    keys = generate(tmp_path / "keys", ["d0", "d1"])
    files = list((tmp_path / "keys").iterdir())
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    one, other = (load(tmp_path / "keys", device) for device in ("d0", "d1"))
    assert one.secrets == other.secrets == keys.secrets
    assert one.allowed is not None and other.device is not None
    assert one.allowed["d1"] == other.device.public


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    first = generate(tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        generate(tmp_path, ["d0"])
    assert load(tmp_path, "d0").secrets == first.secrets
    assert [file.name for file in tmp_path.iterdir()] == ["network.keys"]


def test_a_readable_key_file_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate(tmp_path)
    (tmp_path / "network.keys").chmod(0o644)
    load(tmp_path, "d0")
    assert "other users may read" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("network.keys", None),
        ("network.keys", ""),
        ("network.keys", "xyz"),
        ("network.keys", "00" * 31),
        ("network.keys", "\n".join(["00" * 32] * 2)),
        ("network.keys", "\n".join(f"0{i}" * 32 for i in range(3))),
        ("allowed.json", "[]x"),
        ("allowed.json", "3"),
        ("d0.curve", None),
        ("d0.curve", "short"),
        ("d0.curve", "\N{SNOWMAN}" * 40),
        ("d0.curve", " " * 20 + "x" * 20),
    ],
)
def test_bad_material_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    generate(tmp_path, ["d0"])
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"network\.keys|allowed\.json|d0\.curve"):
        load(tmp_path, "d0")


@pytest.mark.parametrize("device", ["", "../d0", "a/b"])
def test_a_device_cannot_name_another_folder(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match="cannot name a key file"):
        generate(tmp_path, [device])


def test_pairs_depend_on_key_and_role() -> None:
    one, two = NetworkKeys((OLD,)), NetworkKeys((NEW,))
    assert len({one.server().public, one.client().public, two.server().public, two.client().public}) == 4
    assert NetworkKeys((OLD,)).server() == one.server()


def test_secrets_are_not_printed() -> None:
    keys = NetworkKeys((b"A" * 32,), CurvePair.generate(), {})
    assert keys.device is not None
    shown = repr(keys)
    assert "AAAA" not in shown and keys.device.secret.decode() not in shown
    assert pickle.loads(pickle.dumps(keys)) == keys


def test_without_an_allow_list_the_network_key_admits() -> None:
    keys = NetworkKeys((OLD,))
    assert keys.admits(keys.client().public)
    assert not keys.admits(CurvePair.generate().public)
    assert not keys.admits(keys.server().public)
    assert keys.binds("anyone", keys.client().public.decode())


def test_an_allow_list_binds_ids_to_keys() -> None:
    mine, theirs = CurvePair.generate(), CurvePair.generate()
    keys = NetworkKeys((OLD,), mine, {"d0": mine.public, "d1": theirs.public})
    assert keys.admits(theirs.public) and not keys.admits(NetworkKeys((OLD,)).client().public)
    assert keys.binds("d1", theirs.public.decode()) and not keys.binds("d0", theirs.public.decode())
    assert keys.owner(theirs.public.decode()) == "d1"
    with pytest.raises(ValueError, match="pair of its own"):
        NetworkKeys((OLD,), None, {"d0": mine.public})


def test_a_rotation_installs_uses_removes() -> None:
    keys = NetworkKeys((OLD,)).installed(NEW)
    assert keys.server() == NetworkKeys((OLD,)).server()
    used = keys.used(NEW)
    assert used.server() == NetworkKeys((NEW,)).server() and used.secrets == (NEW, OLD)
    assert used.removed(OLD).secrets == (NEW,)


def test_a_rotation_out_of_order_is_refused() -> None:
    keys = NetworkKeys((OLD,)).installed(NEW)
    with pytest.raises(ValueError, match="one or two"):
        keys.installed(THIRD)
    with pytest.raises(ValueError, match="primary"):
        keys.removed(OLD)
    with pytest.raises(ValueError, match="installed before it is used"):
        NetworkKeys((OLD,)).used(NEW)


def test_a_signature_holds_for_its_data_and_key_alone() -> None:
    identity, other = DeviceIdentity.generate(bytes(32)), DeviceIdentity.generate()
    signature = identity.sign(b"leave")
    assert DeviceIdentity.generate(bytes(32)).public == identity.public != other.public
    assert verify(identity.public, b"leave", signature)
    assert not verify(identity.public, b"stay", signature)
    assert not verify(other.public, b"leave", signature)
    assert not verify(b"short", b"leave", signature)
    assert not verify(identity.public, b"leave", b"")
    with pytest.raises(ValueError):
        DeviceIdentity.generate(b"short")


def test_a_returning_device_keeps_its_key(tmp_path: Path) -> None:
    path = tmp_path / "d0" / "identity.key"
    assert DeviceIdentity.load_or_create(path).public == DeviceIdentity.load_or_create(path).public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_allow_list_is_readable(tmp_path: Path) -> None:
    generate(tmp_path, ["d0"])
    assert list(json.loads((tmp_path / "allowed.json").read_text())) == ["d0"]
