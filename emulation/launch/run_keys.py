"""The keys of one run. They are not kept after it, nor in its folder, because run folders are published.

Processes of the launcher get them in memory. Containers and tasks of a cluster read them from a folder that
the launcher removes.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from emulation.scenario.schema import Scenario
from transport.security import keys
from transport.security.keys import NetworkKeys


@dataclass(frozen=True, slots=True, repr=False)
class DeviceKeys:
    """The keys of one device for all its lives in a run."""

    network: NetworkKeys | None  # None: links are not encrypted
    signing: bytes  # seed for `DeviceIdentity`, 32 bytes


def make(scenario: Scenario) -> dict[str, DeviceKeys]:
    """New keys for all devices, by device."""
    devices = scenario.all_devices
    network: dict[str, NetworkKeys] = {}
    if scenario.keys.enabled and scenario.keys.allow_list:
        network = NetworkKeys.for_devices(devices)
    elif scenario.keys.enabled:
        network = dict.fromkeys(devices, NetworkKeys.generate())
    return {device: DeviceKeys(network.get(device), secrets.token_bytes(32)) for device in devices}


def write(scenario: Scenario, folder: Path) -> None:
    """Make a folder of keys for devices that read them from files."""
    folder.mkdir(mode=0o700)
    if scenario.keys.enabled:
        keys.generate(folder, scenario.all_devices if scenario.keys.allow_list else ())
