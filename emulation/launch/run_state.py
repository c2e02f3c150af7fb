"""A run while it goes on, wherever its devices are: what has happened, what is due, who hears whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emulation.scenario.events import EventConfig, cut_off, due
from emulation.scenario.schema import Scenario


@dataclass(kw_only=True)
class RunState:
    """What launchers share. `pending`: the scenario's events that have not happened."""

    scenario: Scenario
    out: Path
    epoch_ns: int
    pending: list[EventConfig]
    last_round: dict[str, int] = field(default_factory=dict)  # that a device has closed; -1: none yet
    events: list[dict[str, object]] = field(default_factory=list)  # that have happened, for the records
    resume_at: list[tuple[float, str]] = field(default_factory=list)  # when those that stall go on
    partition: tuple[tuple[str, ...], ...] = ()  # that there is

    def running(self) -> Mapping[str, object]:
        """The devices that take part, by id."""
        raise NotImplementedError

    def seconds(self) -> float:
        return (time.monotonic_ns() - self.epoch_ns) / 1e9

    def note(self, round_: int, kind: str, device: str) -> None:
        """An event, for the records."""
        self.events.append({"round": round_, "kind": kind, "device": device, "t_s": self.seconds()})

    def to_resume(self) -> list[str]:
        """Those whose stall is over by now; told once."""
        over = [entry for entry in self.resume_at if entry[0] <= self.seconds()]
        self.resume_at = [entry for entry in self.resume_at if entry not in over]
        return [device for _, device in over]

    def cut_off(self, device: str) -> frozenset[str]:
        """Whom a device does not hear in the partition that there is."""
        groups = self.partition
        return cut_off(device, groups, self.scenario.all_devices) if groups else frozenset()

    def due(self, can_return: Callable[[str], bool] = lambda device: True) -> EventConfig | None:
        """The next event that has to happen now."""
        rounds = {device: self.last_round.get(device, -1) for device in self.running()}
        return due(self.scenario.without_late_churn(self.pending, rounds), rounds, can_return)

    def over(self) -> bool:
        """Whether more devices have done all rounds and gone than are left: arrivals would soon be alone."""
        last, running = self.scenario.round.count - 1, self.running()
        done = [d for d, closed in self.last_round.items() if closed == last and d not in running]
        return len(done) > len(running)
