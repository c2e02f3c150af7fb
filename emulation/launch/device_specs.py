"""The parameters with which a launcher on this machine starts each life of each device."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from emulation.launch import run_keys
from emulation.launch.device_scripts import script_of
from emulation.launch.run_keys import DeviceKeys
from emulation.launch.run_state import RunState
from emulation.radio import wireless
from emulation.scenario.events import ARRIVALS
from emulation.scenario.schema import Scenario
from peers.runtime.spec import DeviceSpec
from transport.clocks.virtual import life_name
from transport.shaping.channel import Channel

SEEDS = 8  # addresses of other devices that a device gets


@dataclass(frozen=True, kw_only=True)
class DeviceSpecs:
    """Makes the specs of one run. `addresses`: of each life of each device, by `life_name`."""

    state: RunState
    addresses: Mapping[str, str]
    channel: Channel
    keys: Mapping[str, DeviceKeys] = field(repr=False)  # by device
    run: str = field(default_factory=lambda: secrets.token_hex(8))  # its name in signed statements

    @classmethod
    def choose(cls, state: RunState, ports: Callable[[int], Sequence[str]]) -> DeviceSpecs:
        """Choose addresses and keys. `ports` gives so many endpoints."""
        scenario = state.scenario
        names = _lives(scenario)
        return cls(
            state=state,
            addresses=dict(zip(names, ports(len(names)), strict=True)),
            channel=wireless.channel(scenario, scenario.all_devices),
            keys=run_keys.make(scenario),
        )

    def spec(self, device: str, life: int, cohort: int, known: Sequence[str]) -> DeviceSpec:
        """`cohort`: the number of initial devices; 0 for a device that joins or returns.

        `known`: the devices, by `life_name`, whose addresses the new life gets.
        """
        scenario, address = self.state.scenario, self.addresses[life_name(device, life)]
        return DeviceSpec(
            id=device,
            config=scenario.device_config(),
            listen=address,
            advertise=address,
            seeds=tuple(self.addresses[other] for other in known[:SEEDS]),
            out=str(self.state.out),
            cohort=cohort,
            epoch_ns=self.state.epoch_ns,
            snapshot_every=scenario.eval.every,
            keys=self.keys[device].network,
            signing=self.keys[device].signing,
            channel=self.channel,
            group=self.addresses,
            life=life,
            run=self.run,
            script=script_of(scenario, device, life) if scenario.clock == "virtual" else (),
        )


def _lives(scenario: Scenario) -> list[str]:
    """Each life of each device, by `life_name`."""
    lives = Counter(event.device for event in scenario.events if event.kind in ARRIVALS)
    lives.update(scenario.initial_devices)
    return [life_name(device, life) for device in scenario.all_devices for life in range(lives[device])]
