"""Devices with free ports find each other by the addresses that they write into a shared folder."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest

from peers.config import DeviceConfig
from peers.runtime import address_book
from peers.runtime.spec import DeviceSpec


def spec(folder: Path, device: str) -> DeviceSpec:
    return DeviceSpec(
        id=device,
        config=DeviceConfig(),
        listen="tcp://0.0.0.0:0",
        advertise=f"tcp://10.0.0.{device[1:]}:0",
        seeds=(),
        out=str(folder),
        addresses=str(folder / "addresses"),
    )


def test_a_device_is_listed_under_its_real_port_while_it_lives(tmp_path: Path) -> None:
    with address_book.listed(spec(tmp_path, "d1"), "tcp://0.0.0.0:41234") as listed:
        assert listed.advertise == "tcp://10.0.0.1:41234"
        assert address_book.read(tmp_path / "addresses") == {"d1": "tcp://10.0.0.1:41234"}
    assert address_book.read(tmp_path / "addresses") == {}


def test_a_device_takes_the_addresses_of_the_others(tmp_path: Path) -> None:
    first, second = spec(tmp_path, "d1"), spec(tmp_path, "d2")
    with address_book.listed(first, "tcp://0.0.0.0:1"), address_book.listed(second, "tcp://0.0.0.0:2") as own:
        assert address_book.with_seeds(own).seeds == ("tcp://10.0.0.1:1",)


def test_a_device_with_a_given_port_is_not_listed(tmp_path: Path) -> None:
    given = replace(spec(tmp_path, "d1"), addresses=None)
    with address_book.listed(given, "tcp://0.0.0.0:1") as same:
        assert address_book.with_seeds(same) is given
    assert not (tmp_path / "addresses").exists()


@pytest.mark.parametrize("seed", range(5))
def test_all_devices_are_connected_in_whatever_order_they_write_and_read(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    devices = [f"d{number}" for number in range(40)]
    steps = [(draw.random(), device) for device in devices]
    moments = sorted([*steps, *((at + draw.random(), device) for at, device in steps)])
    graph, listed = nx.Graph(), dict[str, DeviceSpec]()
    graph.add_nodes_from(devices)
    with ExitStack() as stack:
        for _, device in moments:
            if device not in listed:
                bound = f"tcp://0.0.0.0:{1 + devices.index(device)}"
                listed[device] = stack.enter_context(address_book.listed(spec(tmp_path, device), bound))
                continue
            for endpoint in address_book.with_seeds(listed[device]).seeds:
                graph.add_edge(device, devices[int(endpoint.rpartition(":")[2]) - 1])
    assert nx.is_connected(graph)
