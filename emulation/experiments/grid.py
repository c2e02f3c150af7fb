"""The cells of an experiment, setting by arm by seed, and the scenario of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from emulation.experiments.arms import ARMS, BEFORE, ORACLE, UNIFORM, Arm
from emulation.experiments.catalogue import Experiment, Scale, Setting
from emulation.scenario.events import EventConfig
from emulation.scenario.schema import Scenario


@dataclass(frozen=True)
class Cell:
    """One run to make. The leaver is the last device: which facts it owns changes with the seed."""

    setting: Setting
    arm: Arm
    seed: int
    scale: Scale

    @property
    def name(self) -> str:
        """A relative folder too."""
        return f"{self.setting.name}/{self.arm.name}/seed-{self.seed}"

    @property
    def event_round(self) -> int:
        """E, after which the leaver goes; k = round - E. Arms that branch share the last rounds before it."""
        return (self.scale.every if self.arm.branches else self.scale.learn) - 1

    @property
    def before(self) -> Cell | None:
        """Whose checkpoint it begins with."""
        return replace(self, arm=BEFORE) if self.arm.branches else None

    @property
    def devices(self) -> int:
        return self.scale.devices - (self.arm.name == ORACLE)

    @property
    def rounds(self) -> int:
        if self.arm == BEFORE:
            return self.scale.learn - self.scale.every
        return self.event_round + 1 + self.scale.correct

    @property
    def leaver(self) -> str:
        return f"d{self.scale.devices - 1}"

    @property
    def survivors(self) -> tuple[str, ...]:
        return tuple(f"d{i}" for i in range(self.scale.devices - 1))

    def scenario(self) -> Scenario:
        """Virtual clock: equal up to E for all arms that branch, to the last bit.

        Without the folder of the checkpoint, which is where the experiment is.
        """
        scale, arm = self.scale, self.arm
        data: dict[str, Any] = {
            "name": self.name.replace("/", "-").replace("+", "-"),
            "seed": self.seed,
            "clock": "virtual",
            "devices": {"count": self.devices},
            "data": {"persons": scale.persons, "batch": scale.batch},
            "adapter": {"max_devices": scale.max_devices},
            "round": {"count": self.rounds},
            "correction": {"rounds": scale.correct, "period": scale.period},
            "eval": {"every": scale.every},
        }
        _put_all(data, self.setting.changes)
        _put_all(data, arm.changes)
        if arm.event:
            data["event"] = [EventConfig(round=self.event_round, kind=arm.event, device=self.leaver)]  # type: ignore[arg-type]
        return Scenario.model_validate(data)


def _put_all(data: dict[str, Any], changes: Mapping[str, object]) -> None:
    for path, value in changes.items():
        section, key = path.split(".")
        data.setdefault(section, {})[key] = value


def cells(experiment: Experiment, arms: Iterable[str], scale: Scale, seeds: int) -> list[Cell]:
    """Those that need a run: seed by seed, so that an interrupted experiment has whole seeds.

    In each what the others branch from comes first, then the oracle and `uniform`, which all are compared to.
    """
    order = sorted((ARMS[name] for name in arms), key=lambda arm: arm.name not in (ORACLE, UNIFORM))
    return [
        Cell(setting, arm, seed, scale)
        for seed in range(seeds)
        for setting in experiment.settings
        for arm in (BEFORE, *order)
        if not arm.derived
    ]
