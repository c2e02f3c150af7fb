"""The keys of one run: made by its launcher, held in memory, in no file. Runs are shared and published."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from emulation.scenario.schema import Scenario
from transport.security.keys import NetworkKeys


@dataclass(frozen=True, slots=True, repr=False)
class DeviceKeys:
    """Of one device, however often it is started in the run. `signing`: 32 bytes, for `DeviceIdentity`."""

    network: NetworkKeys | None
    signing: bytes


def make(scenario: Scenario) -> dict[str, DeviceKeys]:
    """By device; `network` is None where all is in the clear."""
    devices = scenario.all_devices
    network: dict[str, NetworkKeys] = {}
    if scenario.keys.enabled and scenario.keys.allow_list:
        network = NetworkKeys.for_devices(devices)
    elif scenario.keys.enabled:
        network = dict.fromkeys(devices, NetworkKeys.generate())
    return {device: DeviceKeys(network.get(device), secrets.token_bytes(32)) for device in devices}
