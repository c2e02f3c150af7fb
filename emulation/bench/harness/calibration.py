"""The measured runs that `unweft plan` is fitted to (emulation/planning)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from emulation.bench.harness.crowd import ClosedRound
from emulation.planning.measured_runs import MeasuredRun, Settings
from emulation.scenario.schema import Scenario
from peers.lora.layout import ModelLayout
from peers.models.loader import load_model

Rounds = Mapping[str, Sequence[ClosedRound]]  # by device


def settings(scenario: Scenario) -> Settings:
    """The settings that all runs of one fit share. Loads the base model for the sizes of a block."""
    loaded = load_model(scenario.model)
    layout = ModelLayout.from_model(loaded.model, loaded.target_modules, scenario.adapter.rank)
    radio = scenario.radio
    return Settings(
        model=scenario.model.name,
        rank=max(module.rank for module in layout.modules),
        input_width=min(module.in_features for module in layout.modules),
        groups=len(layout.groups),
        block_bytes=layout.block_bytes(radio.codec),
        codec=radio.codec,
        mode=scenario.mixing.mode,
        tolerance=scenario.mixing.tolerance,
        topology="regular",
        seed=scenario.seed,
        step_s=scenario.compute.step_s,
        latency_s=radio.latency_s,
        rate_Bps=radio.rate_Bps,
        probe_s=scenario.membership.probe_s,
    )


def measured_run(scenario: Scenario, rounds: Rounds, others: Mapping[str, float]) -> MeasuredRun:
    """The figures of the rounds after the first one of each device. `others`: known already; nan: missing."""
    counted = {device: of for device, of in rounds.items() if len(of) > 1}
    figures = {**_figures(counted), **others} if counted else dict(others)
    return MeasuredRun(
        clock=scenario.clock,
        devices=scenario.devices.count,
        degree=scenario.topology.degree,
        churn=scenario.churn.rate,
        budget_bytes=scenario.radio.budget_bytes,
        local_steps=scenario.round.local_steps,
        rounds=max((len(of) - 1 for of in counted.values()), default=1),
        settings=settings(scenario),
        figures={name: value for name, value in figures.items() if math.isfinite(value)},
    )


def _figures(rounds: Rounds) -> dict[str, float]:
    return {
        "own_bytes": _mean(rounds, _own),
        "foreign_bytes": _mean(rounds, _foreign),
        "withheld": _mean(rounds, lambda device, line: line.withheld),
        "control_bytes": _growth(rounds, lambda line: line.control_bytes),
        "transfer_bytes": _growth(rounds, lambda line: line.transfer_bytes),
        "sent_bytes": _growth(rounds, lambda line: line.sent_bytes),
        "round_s": _growth(rounds, lambda line: line.end_s),
    }


def _own(device: str, line: ClosedRound) -> int:
    return sum(size for block, size in line.block_bytes.items() if block.startswith(f"{device}@"))


def _foreign(device: str, line: ClosedRound) -> int:
    return sum(line.block_bytes.values()) - _own(device, line)


def _mean(rounds: Rounds, value: Callable[[str, ClosedRound], float]) -> float:
    """Of a figure of single rounds."""
    return fmean(value(device, line) for device, of in rounds.items() for line in of[1:])


def _growth(rounds: Rounds, value: Callable[[ClosedRound], float]) -> float:
    """In a round, of a figure that counts from the start of the device."""
    return fmean((value(of[-1]) - value(of[0])) / (len(of) - 1) for of in rounds.values())
