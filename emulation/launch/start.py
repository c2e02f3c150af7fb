"""What a launcher starts with: a new run, or a run that goes on after an interruption (resume.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emulation.analysis.device_histories import Incarnation
from emulation.analysis.records import Record
from emulation.scenario.events import EventConfig
from emulation.scenario.schema import Scenario


@dataclass(frozen=True, kw_only=True)
class Start:
    """The devices that start together and the events that follow.

    The other fields are for a run that goes on. lives: earlier processes by device. ended: the incarnations
    from before, with their ends. correct_until: last round of the correction that the interruption cut. done:
    the events that happened. facts: the devices in the run.json from before. resumed: one entry for each time
    that the run went on, this time included.
    """

    devices: tuple[str, ...]
    events: tuple[EventConfig, ...]
    lives: Mapping[str, int] = field(default_factory=dict)
    first_round: int = 0
    elapsed_s: float = 0.0  # of the run's clock, up to the last record
    ended: tuple[Incarnation, ...] = ()
    correct_until: int = -1
    done: tuple[Record, ...] = ()
    facts: Mapping[str, Record] = field(default_factory=dict)
    partition: tuple[tuple[str, ...], ...] = ()  # groups of the present partition
    resumed: tuple[Record, ...] = ()

    @classmethod
    def of(cls, scenario: Scenario) -> Start:
        """The start of a new run."""
        return cls(devices=scenario.initial_devices, events=scenario.events)

    @property
    def goes_on(self) -> bool:
        """Whether this is no new run."""
        return bool(self.resumed)

    @property
    def elapsed_ns(self) -> int:
        return round(self.elapsed_s * 1e9)

    def first_life(self, device: str) -> int:
        """The number of the first process of a device that is started now."""
        return self.lives.get(device, 0)
