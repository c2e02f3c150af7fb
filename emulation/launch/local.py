"""The backend `local`: each device is a process on this machine, in real or in virtual time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from rich.console import Console

from emulation.analysis.records import failure, reason
from emulation.launch.backend import SignalKind
from emulation.launch.device_scripts import executed_events, not_executed, present_at_start
from emulation.launch.device_specs import DeviceSpecs
from emulation.launch.forkserver import Forkserver, kill_all
from emulation.launch.ports import loopback_ports, socket_files
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.scenario.events import ARRIVALS
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario
from peers.runtime import partition
from peers.runtime.external_events import END_SIGNAL
from peers.runtime.main import process_main
from peers.runtime.spec import DeviceSpec
from transport.clocks.virtual import life_name

SIGNALS: dict[SignalKind, signal.Signals] = {
    "leave": signal.SIGTERM,
    "retire": signal.SIGINT,
    "crash": signal.SIGKILL,
    "stall": signal.SIGSTOP,
    "resume": signal.SIGCONT,
    "partition": partition.SIGNAL,
    "end": END_SIGNAL,
}


def prepare(
    state: RunState,
    console: Console,
    make: Callable[..., LocalBackend] | None = None,
    choose: Callable[[int], Sequence[str]] | None = None,
) -> LocalBackend:
    """Write the scenario into the run's folder and choose addresses and keys.

    `make`: makes the backend of these; default: LocalBackend. `choose`: gives so many endpoints; default:
    `endpoints`.
    """
    state.out.mkdir(parents=True, exist_ok=True)
    if not state.start.goes_on:
        (state.out / "scenario.toml").write_text(dump(state.scenario), encoding="utf-8")
    state.epoch_ns = time.monotonic_ns() - state.start.elapsed_ns
    return (make or LocalBackend)(
        state=state,
        specs=DeviceSpecs.choose(state, choose or endpoints(state.scenario)),
        forkserver=Forkserver(state.scenario.model, state.scenario.plugins),
    )


def endpoints(scenario: Scenario) -> Callable[[int], Sequence[str]]:
    """Gives so many endpoints: socket files, which need no encryption among the processes of one user.

    Ports with an allow-list, since only CURVE proves which device connects, and in virtual time, where the
    length of an address decides when a message arrives.
    """
    ports = scenario.clock == "virtual" or scenario.keys.allow_list
    return loopback_ports if ports else socket_files


@dataclass(kw_only=True)
class LocalBackend:
    """The device processes of a run."""

    state: RunState
    forkserver: Forkserver
    specs: DeviceSpecs
    lives: dict[str, list[ForkServerProcess]] = field(default_factory=dict)  # one process for each life
    process: Callable[[DeviceSpec, Connection], object] = process_main  # what a device's process runs
    poll_s: float = 0.1

    def start_initial(self) -> None:
        """Start the devices that start together; in virtual time also all later lives.

        Later lives wait for their rounds. All virtual clocks must know from the beginning which devices will
        join.
        """
        for device in self.state.start.devices:
            self.start_together(device)
        if self._is_virtual:
            for event in self.state.pending:
                if event.kind in ARRIVALS and event.device:
                    self.start(event.device)
            self.state.pending.clear()

    def start_together(self, device: str) -> None:
        """Start one of the devices that start together. It waits until it knows all of them."""
        self._start_life(device, cohort=len(self.state.start.devices))

    def start(self, device: str) -> None:
        self._start_life(device, cohort=0)

    def signal(self, device: str, kind: SignalKind) -> None:
        pid = self.lives[device][-1].pid
        if pid is not None:
            with suppress(ProcessLookupError):  # it has ended in the meantime
                os.kill(pid, SIGNALS[kind])

    def running(self) -> dict[str, DeviceStatus]:
        return {device: self._status(device, processes) for device, processes in self.lives.items()}

    def end(self, succeeded: bool) -> dict[str, DeviceStatus]:
        kill_all(process for processes in self.lives.values() for process in processes)
        self.forkserver.close()
        if self._is_virtual:
            devices = dict.fromkeys([*self.lives, *self.state.start.lives])  # with those from before
            self.state.events += executed_events(self.state.out, devices)
            self.state.pending = not_executed(self.state.scenario, self.state.events)
        return self.running()

    @property
    def _is_virtual(self) -> bool:
        return self.state.scenario.clock == "virtual"

    def _status(self, device: str, processes: list[ForkServerProcess]) -> DeviceStatus:
        alive = processes[-1].is_alive()
        exits = tuple(process.exitcode for process in processes)
        failed = any(self.state.failed(device, code) for code in exits)
        log = self.state.out / "devices" / device / "log.txt"
        return DeviceStatus(
            running=alive,
            exits=exits,
            can_return=not alive,
            failure=f"{failure(log.parent) or reason(log)}; its log: {log}" if failed else "",
            record={"pid": processes[-1].pid},
        )

    # -- starting a life ---------------------------------------------------------------------------
    def _start_life(self, device: str, cohort: int) -> None:
        earlier = len(self.lives.get(device, ()))
        life = self.state.start.first_life(device) + earlier
        known = self.known_at_start(device, life, cohort)
        spec = self.specs.spec(device, life, cohort, known)
        if any(event.kind == "crash" for event in spec.script):
            self.state.killed.add((device, earlier))
        process = self.forkserver.start(self.process, spec, name=device)
        self.lives.setdefault(device, []).append(process)  # an interrupted start leaves no empty list

    def known_at_start(self, device: str, life: int, cohort: int) -> list[str]:
        """The devices, by `life_name`, whose addresses a new life gets.

        In real time, a device that joins or returns gets the devices that run and that it can reach now.
        """
        start = self.state.start
        running = {
            other: life_name(other, start.first_life(other) + len(processes) - 1)
            for other, processes in self.lives.items()
            if other != device and processes[-1].is_alive()
        }
        if cohort or self._is_virtual or not running:
            return present_at_start(self.state.scenario, start, device, life)
        reachable = running.keys() - self.state.cut_off(device)
        return [name for other, name in running.items() if other in reachable or not reachable]
