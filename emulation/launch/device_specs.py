"""The parameters with which a launcher on this machine starts each life of each device."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from coordinator_free.membership.signed_records import Record, Status
from emulation.analysis.device_histories import Incarnation
from emulation.launch import run_keys
from emulation.launch.device_scripts import script_of
from emulation.launch.run_keys import DeviceKeys
from emulation.launch.run_state import RunState
from emulation.launch.start import Start
from emulation.radio import wireless
from emulation.scenario.events import ARRIVALS
from peers.runtime.spec import Continuation, DeviceSpec
from transport.clocks.virtual import life_name
from transport.links.endpoints import is_socket_file
from transport.security.keys import DeviceIdentity
from transport.shaping.channel import Channel

SEEDS = 8  # addresses of other devices that a device gets
NOWHERE = "tcp://127.0.0.1:1"  # the address of an incarnation that has ended, where links are TCP
# The last status of an incarnation, by its end. One that no departure ended goes on as the next one.
ENDED = {
    "leave": Status.LEFT,
    "retire": Status.RETIRED,
    "crash": Status.CRASHED,
    "": Status.WITHDRAWN,
}


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
        names = _lives(state.start)
        return cls(
            state=state,
            addresses=dict(zip(names, ports(len(names)), strict=True)),
            channel=wireless.channel(scenario, scenario.all_devices),
            keys=run_keys.make(scenario),
        )

    def spec(self, device: str, life: int, cohort: int, known: Sequence[str]) -> DeviceSpec:
        """`cohort`: the number of devices that start together; 0 for a device that joins or returns.

        `known`: the devices, by `life_name`, whose addresses the new life gets.
        """
        scenario, start = self.state.scenario, self.state.start
        address, config = self.addresses[life_name(device, life)], scenario.device_config()
        if cohort and start.goes_on:
            checkpoint = config.checkpoint.model_copy(update={"resume": str(self.state.out)})
            config = config.model_copy(update={"checkpoint": checkpoint})
        return DeviceSpec(
            id=device,
            config=config,
            listen=address,
            advertise=address,
            seeds=tuple(self.addresses[other] for other in seeds(start.devices, device, known)),
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
            script=script_of(scenario, start, device, life) if scenario.clock == "virtual" else (),
            elapsed_ns=start.elapsed_ns,
            continues=self._continuation if cohort and start.goes_on else None,
        )

    @cached_property
    def _continuation(self) -> Continuation:
        """What the devices of a run that goes on have to know."""
        start, keep = self.state.start, self.state.scenario.on_crash == "keep"
        ended = tuple(self._record(incarnation, keep) for incarnation in start.ended)
        return Continuation(start.first_round, ended, start.correct_until)

    def _record(self, ended: Incarnation, keep_crashed: bool) -> Record:
        """The last record of an incarnation from before the interruption, signed with its owner's new key.

        The keys of a run are in no file, so the former records cannot be verified any more.
        """
        keys = self.keys[ended.key.device]
        listed = None if keys.network is None else keys.network.identity()
        signer = (listed or DeviceIdentity.generate(keys.signing)).for_run(self.run)
        status = Status.WITHDRAWN if ended.end == "crash" and not keep_crashed else ENDED[ended.end]
        record = Record(*ended.key, self._nowhere, ended.slot, 1, 1, status, 0, signer.public)
        return replace(record, signature=signer.sign(record.signed_data()))

    @property
    def _nowhere(self) -> str:
        """An address of the run's kind at which nobody listens: another kind would count as an attack."""
        address = next(iter(self.addresses.values()))
        return f"{address.rpartition('/')[0]}/ended" if is_socket_file(address) else NOWHERE


def seeds(together: Sequence[str], device: str, known: Sequence[str]) -> Sequence[str]:
    """At most SEEDS of the known devices: those 1, 2, 4, ... places before this one, in a ring.

    Each device is a seed of few others, since it relays all news to those that call it. The distance 1
    connects all. `together`: the devices that start together, in order of their start; others come later.
    """
    if len(known) <= SEEDS:
        return known
    at = together.index(device) if device in together else len(known)
    places = dict.fromkeys((at - 2**step) % len(known) for step in range(SEEDS))
    return [known[place] for place in places]


def _lives(start: Start) -> list[str]:
    """Each life that may still start, by `life_name`."""
    devices = [*start.devices, *(e.device for e in start.events if e.kind in ARRIVALS and e.device)]
    lives = Counter(devices)
    numbers = {device: start.first_life(device) for device in lives}
    return [life_name(d, n) for d in lives for n in range(numbers[d], numbers[d] + lives[d])]
