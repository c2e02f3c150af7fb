"""The keys of one run. They are held in memory and are in no file, because run folders are published."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from emulation.scenario.schema import Scenario
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
