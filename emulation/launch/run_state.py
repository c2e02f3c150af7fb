"""The state of a run while it goes on: statuses of devices, events that are done, events that are due."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from emulation.analysis.effects import seen_as_crashed, took_effect
from emulation.analysis.records import INJECTED, Tail, read_lines, write_run
from emulation.launch.start import Start
from emulation.scenario.events import GONE, EventConfig, cut_off, due
from emulation.scenario.schema import Scenario
from peers.errors import LEAVE_UNCONFIRMED
from peers.storage import leave_wishes

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # exit status after SIGKILL: of a process, of a container


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What a backend knows of one device.

    A life is the time from one start of the device to its end.
    """

    running: bool  # takes part in the run; false while it waits for its start
    exits: tuple[int | None, ...] = (None,)  # exit status of each life; None: the life goes on
    can_return: bool = False  # has ended, and may be started again now
    failure: str = ""  # for an exit status that is an error: last output of the device and its log file
    record: Mapping[str, object] = field(default_factory=dict)  # fields for run.json

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended the last life."""
        return self.exits[-1] in KILLED


@dataclass(kw_only=True)
class RunState:
    """The run loop changes this state; backends read it."""

    scenario: Scenario
    out: Path
    continues: Start | None = None  # of a run that goes on; None: it is new
    epoch_ns: int = field(default_factory=time.monotonic_ns)  # monotonic time of the run's start
    pending: list[EventConfig] = field(default_factory=list)  # events of the scenario that are not done
    devices: Mapping[str, DeviceStatus] = field(default_factory=dict)  # as last seen
    last_round: dict[str, int] = field(default_factory=dict)  # last closed round by device; -1: none yet
    events: list[dict[str, object]] = field(default_factory=list)  # events that are done, for run.json
    resume_at: list[tuple[float, str]] = field(default_factory=list)  # end of each stall in s, device
    partition: tuple[tuple[str, ...], ...] = ()  # groups of the present partition
    delivered_s: float = -math.inf  # when unconfirmed leaves were last delivered
    # device, number of the process since the start: a crash that is in `events`
    killed: set[tuple[str, int]] = field(default_factory=set)
    _tails: dict[str, Tail] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.continues is not None:
            self.partition = self.continues.partition
            if self.scenario.clock == "real":  # in virtual time the devices record the events
                self.events += self.continues.done

    @cached_property
    def start(self) -> Start:
        """The devices that start together, and the events that follow."""
        return self.continues or Start.of(self.scenario)

    def running(self) -> dict[str, DeviceStatus]:
        """Devices that take part, by id."""
        return {device: status for device, status in self.devices.items() if status.running}

    def failed(self, device: str, code: int | None) -> bool:
        """Whether an exit status of a device is an error. A leave that nobody has confirmed is none."""
        if code == LEAVE_UNCONFIRMED:
            return not leave_wishes.read(self.out / "devices" / device).records
        return code not in (None, 0, *KILLED)

    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return (time.monotonic_ns() - self.epoch_ns) / 1e9

    def see_devices(self, devices: Mapping[str, DeviceStatus]) -> None:
        """Store the statuses of all devices and read the rounds that they have closed."""
        self.devices = devices
        for device in devices:
            if device not in self._tails:
                self._tails[device] = Tail(self.out / "devices" / device / "metrics.jsonl")
            for record in self._tails[device].read():
                if int(record.get("life", 0)) >= self.start.first_life(device):
                    self.last_round[device] = int(str(record["round"]))

    def record_event(self, round_: int, kind: str, device: str, at_s: float | None = None) -> None:
        """Add an event to the records of the run. `at_s`: seconds since its start; None: now."""
        at_s = self.seconds() if at_s is None else at_s
        self.events.append({"round": round_, "kind": kind, "device": device, "t_s": at_s})
        self._show(self.events[-1])

    def record_resume(self, device: str) -> None:
        """A stall is over. Only those who follow the run need to know."""
        closed = max(0, self.last_round.get(device, 0))
        self._show({"round": closed, "kind": "resume", "device": device, "t_s": self.seconds()})

    def _show(self, event: Mapping[str, object]) -> None:
        """Append an event to INJECTED. A full disk ends no run."""
        with suppress(OSError), (self.out / INJECTED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def record_crashes(self) -> None:
        """Record each life that was killed from outside as a crash, once."""
        for device, status in self.devices.items():
            for life, code in enumerate(status.exits):
                if code in KILLED and (device, life) not in self.killed:
                    self.killed.add((device, life))
                    self.record_event(max(0, self.last_round.get(device, 0)), "crash", device)

    def record_late_crashes(self, end_s: float) -> None:
        """Record each device that crashed before the run's end, `end_s`, unnoticed by the backend.

        Slurm reports a failed node minutes later. The other devices detect the crash. It counts from the
        device's last record.
        """
        events = {d: read_lines(self.out / "devices" / d / "events.jsonl") for d in self.devices}
        for device, status in self.devices.items():
            life = (device, len(status.exits) - 1)
            if self.scenario.clock == "virtual" or not status.killed or life in self.killed:
                continue
            rounds = read_lines(self.out / "devices" / device / "metrics.jsonl")[-1:]
            times = [float(e["t_s"]) for e in events[device]] + [float(line["t1_s"]) for line in rounds]
            others = (e for d in events for e in events[d] if d != device and float(e["t_s"]) < end_s)
            if times and seen_as_crashed(device, max(times), others):
                self.killed.add(life)
                self.record_event(max(0, self.last_round.get(device, 0)), "crash", device, max(times))

    def expect_kill(self, device: str) -> None:
        """A crash of the scenario kills the present life of a device."""
        self.killed.add((device, len(self.devices[device].exits) - 1))

    def pop_ended_stalls(self) -> list[str]:
        """Devices whose stall is over by now; each stall is returned once."""
        over = [entry for entry in self.resume_at if entry[0] <= self.seconds()]
        self.resume_at = [entry for entry in self.resume_at if entry not in over]
        return [device for _, device in over]

    def cut_off(self, device: str) -> frozenset[str]:
        """Devices that a device cannot reach in the present partition."""
        groups = self.partition
        return cut_off(device, groups, self.scenario.all_devices) if groups else frozenset()

    def next_due(self) -> EventConfig | None:
        """The next event that has to happen now."""
        rounds = {device: self.last_round.get(device, -1) for device in self.running()}
        training = sum(last >= 0 for last in rounds.values())

        def too_few(event: EventConfig) -> bool:
            """Newcomers need time to start, and after a partition many rounds are over at once."""
            return (
                event.kind in GONE
                and event not in self.scenario.event
                and training <= self.scenario.churn.least
            )

        pending = self.scenario.without_late_churn(self.pending, rounds)
        return due(pending, rounds, self._can_return, too_few)

    def _can_return(self, device: str) -> bool:
        return device in self.devices and self.devices[device].can_return

    def ending(self) -> bool:
        """Whether more devices have done all rounds and ended than still run. No event happens after that:
        a device that joined would soon be alone."""
        last, running = self.scenario.round.count - 1, self.running()
        done = [d for d, closed in self.last_round.items() if closed == last and d not in running]
        return len(done) > len(running)

    def withdraw_ineffective(self) -> None:
        """List departures that were injected after the last round of a device as not done."""
        for event in list(self.events):
            if float(str(event["t_s"])) < self.start.elapsed_s:
                continue  # a leave from before an interruption was carried out
            device = str(event["device"])
            lines = read_lines(self.out / "devices" / device / "events.jsonl") if device else []
            if not took_effect(event, lines):
                self.events.remove(event)
                same = (event["round"], event["kind"], event["device"])
                listed = [e for e in self.scenario.events if (e.round, e.kind, e.device) == same]
                self.pending += listed[:1]

    def write_record(self) -> None:
        """Write run.json."""
        now = {d: {**status.record, "exit": status.exits[-1]} for d, status in self.devices.items()}
        devices = {**self.start.facts, **now}
        not_done = [e.model_dump(mode="json", exclude_defaults=True) for e in self.pending]
        resumed = self.start.resumed
        write_run(self.out, devices, self.events, not_done, self.epoch_ns, self.seconds(), resumed)
