"""The endpoints of local devices: socket files in a private folder, or ports where those cannot serve."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from emulation.launch import ports, temporary_folder
from emulation.launch.local import endpoints
from emulation.scenario.schema import Scenario
from transport.links.endpoints import check_private, is_socket_file


def scenario(**sections: object) -> Scenario:
    return Scenario.model_validate(sections)


def test_processes_of_one_launcher_use_socket_files_of_a_private_folder() -> None:
    for keys in (True, False):
        found = endpoints(scenario(keys={"enabled": keys}))(3)
        assert len(set(found)) == 3 and all(map(is_socket_file, found))
        check_private(found[0])
    assert set(found).isdisjoint(ports.socket_files(3))  # two runs of one launcher share the folder
    assert stat.S_IMODE(Path(temporary_folder.path()).stat().st_mode) == 0o700


def test_a_folder_of_socket_files_belongs_to_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    check_private(f"ipc://{tmp_path}/private/0")
    for folder in ("open", "link"):
        with pytest.raises(PermissionError, match=folder):
            check_private(f"ipc://{tmp_path}/{folder}/0")


def test_ports_serve_an_allow_list_and_virtual_time() -> None:
    for made in (scenario(keys={"allow_list": True}), scenario(clock="virtual")):
        assert all(one.startswith("tcp://127.0.0.1:") for one in endpoints(made)(2))


@pytest.mark.parametrize("folder", ["/" + "x" * 100, "/tmp/two words", "/tmp/café"])
def test_ports_serve_where_the_path_of_the_folder_is_no_address(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_folder, "path", lambda: folder)
    assert all(one.startswith("tcp://") for one in ports.socket_files(2))
