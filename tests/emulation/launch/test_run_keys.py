"""The keys of a run: one network key, ids bound to keys by an allow-list, no key in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from emulation.analysis import summary
from emulation.launch import run_keys, run_loop
from emulation.launch.run_keys import DeviceKeys
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from tests.support import synthetic_run
from tests.support.command_line import QUICK


def scenario(*overrides: str) -> Scenario:
    return load(Path(QUICK), overrides)


def test_one_network_key_for_all_and_a_signing_key_for_each() -> None:
    keys = run_keys.make(scenario())
    assert set(keys) == {"d0", "d1", "d2"}
    assert len({keys[d].network for d in keys}) == 1
    assert len({keys[d].signing for d in keys}) == 3


def test_with_an_allow_list_each_device_is_bound_to_a_pair_of_its_own() -> None:
    keys = run_keys.make(scenario("keys.allow_list=true", "event.0.kind=join", "event.0.device=d9"))
    assert set(keys) == {"d0", "d1", "d2", "d9"}
    networks = {device: found.network for device, found in keys.items() if found.network is not None}
    assert len({network.secrets for network in networks.values()}) == 1
    for device, network in networks.items():
        assert network.device is not None
        for other in networks.values():
            assert [d for d in networks if other.binds(d, network.device.public.decode())] == [device]


def test_without_encryption_there_is_no_network_key() -> None:
    assert {found.network for found in run_keys.make(scenario("keys.enabled=false")).values()} == {None}


def test_repr_shows_no_key() -> None:
    found = run_keys.make(scenario("keys.allow_list=true"))["d0"]
    assert found.network is not None and found.network.device is not None
    shown = repr(found) + repr(found.network)
    assert repr(found.network.secrets[0]) not in shown and repr(found.network.device.secret) not in shown


def test_the_summary_counts_refused_messages(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    finished = {"t_s": 12.0, "round": 9, "event": "finished", "security_events": {"inbox_protocol": 3}}
    with (folder / "devices" / "d0" / "events.jsonl").open("a") as file:
        file.write(json.dumps(finished) + "\n")
    told = {device["id"]: device["security_events"] for device in summary.build(folder)["devices"]}
    assert told["d0"] == {"inbox_protocol": 3} and told["d1"] is None


@pytest.mark.timeout(240)  # a whole run: its processes import torch
def test_a_runs_folder_holds_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, DeviceKeys] = {}

    def make(given: Scenario) -> dict[str, DeviceKeys]:
        made.update(original(given))
        return made

    original = run_keys.make
    monkeypatch.setattr(run_keys, "make", make)
    given = scenario("keys.allow_list=true", "round.count=4")
    assert run_loop.run(given, tmp_path / "run", Console(quiet=True)) == 0
    written = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(written) > 10
    for secret in _secrets(made):
        for form in (secret, secret.hex().encode()):
            assert not any(form in content for content in written)


def _secrets(keys: dict[str, DeviceKeys]) -> set[bytes]:
    found = {device.signing for device in keys.values()}
    for network in (device.network for device in keys.values()):
        assert network is not None and network.device is not None
        found |= {network.secrets[0], network.device.secret, network.server().secret, network.client().secret}
    return found
