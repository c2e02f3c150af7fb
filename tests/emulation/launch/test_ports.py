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


def test_ports_serve_an_allow_list_and_virtual_time() -> None:
    for made in (scenario(keys={"allow_list": True}), scenario(clock="virtual")):
        assert all(one.startswith("tcp://127.0.0.1:") for one in endpoints(made)(2))


def test_ports_serve_where_the_folder_has_a_long_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_folder, "path", lambda: "/" + "x" * 100)
    assert all(one.startswith("tcp://") for one in ports.socket_files(2))
