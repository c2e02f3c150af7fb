"""The grid of an experiment: one cell for each setting, arm and seed, with its scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from emulation.experiments.arms import (
    ARMS,
    BEFORE,
    INFLUENCE,
    MANY_STEPS,
    N_MAX,
    ORACLE,
    ORACLES,
    UNIFORM,
    Arm,
)
from emulation.experiments.catalogue import Experiment, Scale, Setting
from emulation.scenario.loading import from_table
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.config import RoundConfig
from peers.errors import InputError
from peers.radio_config import FIFO

OVERHEAD_STEPS = 2  # of a round without its local steps: messages, mixing and records


class Leave(NamedTuple):
    """A leave in a run. round: the last one before it. survivors: the devices that are there then."""

    round: int
    leaver: str
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of an experiment. The last device leaves or joins. Its facts change with the seed."""

    setting: Setting
    arm: Arm
    seed: int
    scale: Scale

    @property
    def name(self) -> str:
        """The name, which is also the relative folder."""
        return f"{self.setting.name}/{self.arm.name}/seed-{self.seed}"

    @property
    def event_round(self) -> int:
        """E, the last round before the leave; k = round - E. A branching arm runs `every` rounds up to E."""
        return (self.scale.every if self.arm.branches else self.scale.learn) - 1

    @property
    def before(self) -> Cell | None:
        """The cell whose checkpoint this cell resumes."""
        return replace(self, arm=BEFORE) if self.arm.branches else None

    @property
    def devices(self) -> int:
        """At the start: without the leaver in oracles; without the newcomer in all other arms."""
        return self.scale.devices - ((self.arm.name in ORACLES) != self.setting.joins)

    @property
    def repeated(self) -> int:
        """Rounds of the training that are repeated after the event."""
        return len(range(0, self.scale.learn, self.arm.repeats)) if self.arm.repeats else 0

    @property
    def rounds(self) -> int:
        if self.arm == BEFORE:
            return self.scale.learn - self.scale.every
        full = self.event_round + 1 + self.repeated + self.scale.correct
        # They know all facts after about K rounds. Their steps cost more than those of all arms together.
        return min(full, 2 * self.scale.correct) if self.arm.name in MANY_STEPS else full

    @property
    def effort(self) -> int:
        """Local steps of all devices, by which the remaining time of an experiment is estimated."""
        steps = self.scenario().round.local_steps
        return self.rounds * self.devices * (steps + OVERHEAD_STEPS)

    @property
    def leaver(self) -> str:
        """The device of the event: the leaver, or the newcomer."""
        return f"d{self.scale.devices - 1}"

    @property
    def survivors(self) -> tuple[str, ...]:
        return tuple(f"d{i}" for i in range(self.scale.devices - 1))

    @property
    def leaves(self) -> tuple[Leave, ...]:
        """The leaves at which a baseline unlearns (unlearners.py)."""
        return (Leave(self.event_round, self.leaver, self.survivors),)

    @property
    def retained(self) -> tuple[str, ...]:
        """The devices whose facts the model has to know after the event."""
        return (*self.survivors, self.leaver) if self.setting.joins else self.survivors

    @property
    def slots(self) -> int:
        return self.scale.max_devices

    def scenario(self) -> Scenario:
        """The scenario, with the virtual clock: branching arms are equal up to round E, to the last bit.

        The folder of the checkpoint is not set, since it depends on the folder of the experiment.
        """
        scale, arm = self.scale, self.arm
        correction = {"policy": UNIFORM, "rounds": self.repeated + scale.correct, "period": scale.period}
        data = {**self.common(), "correction": correction, "eval": {"every": scale.every}}
        event = {"round": self.event_round, "kind": "join" if self.setting.joins else arm.event}
        return self.checked(data, [{**event, "device": self.leaver}] if arm.event else [])

    def common(self) -> dict[str, Any]:
        """The tables with which the scenarios of all experiments begin."""
        return {
            "name": self.name.replace("/", "-").replace("+", "-"),
            "seed": self.seed,
            "clock": "virtual",
            "devices": {"count": self.devices},
            "data": {"persons": self.scale.persons, "batch": self.scale.batch},
            "adapter": {"max_devices": self.slots},
            "round": {"count": self.rounds},
        }

    def checked(self, data: dict[str, Any], events: Sequence[Mapping[str, object]] = ()) -> Scenario:
        """The scenario of `data` with the changes of the setting and of the arm. Raises InputError."""
        set_all(data, self.setting.changes)
        set_all(data, self.arm.changes)
        if events:
            data["event"] = list(events)
        self._drop_size(data)
        found = from_table(data, options=self.setting.changes)
        if self.arm.name == INFLUENCE and found.adapter.kind == "vera":  # the step is for a B of r columns
            raise InputError(f"adapter.kind: 'vera' with the arm {INFLUENCE!r}; allowed: another kind")
        return found

    def _drop_size(self, data: dict[str, Any]) -> None:
        """Remove the leaver (or newcomer) from `data.sizes` if this run does not have this device."""
        sizes, number = data["data"].get("sizes"), int(self.leaver.removeprefix("d"))
        there = number < data["devices"]["count"] or "event" in data
        if isinstance(sizes, dict) and not there:
            data["data"]["sizes"] = {name: n for name, n in sizes.items() if name != self.leaver}


def check_cells(cells: Sequence[Cell]) -> None:
    """Make the scenarios of all cells, and check each setting against its model, with each budget and codec.

    Raises InputError if one of them is not possible.
    """
    first: dict[object, Scenario] = {}
    for cell in cells:
        scenario = cell.scenario()
        radio = scenario.radio
        codec = radio.codec if radio.allocator == FIFO else radio.codecs
        first.setdefault((cell.setting.name, radio.budget_bytes, codec), scenario)
    for scenario in first.values():
        check_against_model(scenario)


def set_all(data: dict[str, Any], changes: Mapping[str, object]) -> None:
    """Set the values of key paths "section.key" or "section.section.key"."""
    for path, value in changes.items():
        *sections, key = path.split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = _n_max(data) if value == N_MAX else value


def _n_max(data: Mapping[str, Any]) -> int:
    """correction.steps_max, which is twice round.local_steps if it is not set."""
    most = data["correction"].get("steps_max")
    return int(most or 2 * data["round"].get("local_steps", RoundConfig().local_steps))


def cells(experiment: Experiment, arms: Iterable[str], scale: Scale, seeds: Iterable[int]) -> list[Cell]:
    """The cells that need a run, seed by seed, so that an interrupted experiment has complete seeds.

    For each seed and setting, BEFORE comes first, then `oracle` and `uniform`, then the other arms.
    """
    order = sorted((ARMS[name] for name in arms), key=lambda arm: arm.name not in (ORACLE, UNIFORM))
    return [
        Cell(setting, arm, seed, scale)
        for seed in seeds
        for setting in experiment.settings
        for arm in (BEFORE, *order)
        if not arm.derived
    ]
