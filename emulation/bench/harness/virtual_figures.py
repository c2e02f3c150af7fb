"""Figures of a run in virtual time, which do not depend on the load of the machine."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from emulation.analysis import records
from emulation.analysis.link_totals import final_links
from emulation.analysis.records import Record, RunRecords
from emulation.bench.harness.crowd import ClosedRound
from emulation.launch import one_process
from emulation.scenario.loading import load
from transport.shaping.accounting import BOUNDS_NS

LEARNT = 0.95  # mean accuracy of all devices on the facts of all devices


@dataclass(frozen=True)
class VirtualFigures:
    """control: bytes of a device in a round, from the end of the first round to the end of the last one.

    learnt_round: rounds until all devices know everyone's facts; nan if they do not in this run.
    learnt_bytes: sent by a device up to then. learnt_between: the same as learnt_round, between evaluations.
    learning: the closed rounds of each device up to then, or all if they do not learn everything.
    """

    latency_p95_s: float
    control_bytes: float
    control_share: float  # of the budget
    violations: int
    learnt_round: float
    learnt_bytes: float
    learnt_between: float = math.nan
    learning: Mapping[str, Sequence[ClosedRound]] = field(default_factory=dict)


class VirtualRun:
    """Runs a scenario in a child process, which ends with the memory that the run took (processes.Crew)."""

    def run(self, scenario: str, folder: str) -> VirtualFigures:
        """Run a scenario (TOML text) into a new folder."""
        file, out = Path(folder) / "virtual.toml", Path(folder) / "virtual"
        file.write_text(scenario, encoding="utf-8")
        one_process.run(load(file), out, {"round"})
        return figures(records.load(out))


def figures(run: RunRecords) -> VirtualFigures:
    """The figures of the records of a run without events."""
    closed = {device: [ClosedRound.of(line) for line in run.metrics[device]] for device in run.devices}
    control = [control_of_rounds(of) for of in closed.values() if len(of) > 1]
    share = fmean(control) / run.scenario.radio.budget_bytes
    evaluations = run.tagged("round")
    learnt = learnt_round(evaluations)
    learning = {
        device: [line for line in of if learnt is None or line.number <= learnt]
        for device, of in closed.items()
    }
    return VirtualFigures(
        latency_quantile_s(_links(run), 0.95),
        fmean(control),
        share,
        sum(line.spent_bytes > line.granted_bytes for of in closed.values() for line in of),
        math.nan if learnt is None else learnt + 1,
        math.nan if learnt is None else fmean(of[-1].sent_bytes for of in learning.values() if of),
        learnt_between(evaluations),
        learning,
    )


def control_of_rounds(closed: list[ClosedRound]) -> float:
    """Control bytes in a round: the mean over all rounds but the first one, which begins with greetings."""
    if len(closed) < 2:
        return math.nan
    return (closed[-1].control_bytes - closed[0].control_bytes) / (len(closed) - 1)


def learnt_round(evaluations: list[Record]) -> int | None:
    """The first evaluated round after which the devices know LEARNT of everyone's facts; None: no round."""
    return next((number for number, known in _known(evaluations) if known >= LEARNT), None)


def learnt_between(evaluations: list[Record]) -> float:
    """Rounds until the devices know LEARNT, on straight lines between the evaluations; nan: they do not."""
    before, lower = 0, 0.0
    for number, known in _known(evaluations):
        if known >= LEARNT:
            return before + (number + 1 - before) * (LEARNT - lower) / (known - lower)
        before, lower = number + 1, known
    return math.nan


def _known(evaluations: list[Record]) -> list[tuple[int, float]]:
    """The evaluated rounds in order, with the mean accuracy of all devices on all facts."""
    by_round = defaultdict[int, list[float]](list)
    for line in evaluations:
        by_round[int(line["round"])] += line["accuracy"].values()
    return [(number, fmean(known)) for number, known in sorted(by_round.items())]


def latency_quantile_s(links: list[Record], share: float) -> float:
    """The latency that this share of all received messages did not exceed: the upper bound of a bucket."""
    counts = Counter[int]()
    for link in links:
        counts.update({int(bucket): n for bucket, n in link.get("latency_counts", {}).items()})
    rank, seen = math.ceil(share * counts.total()), 0
    for bucket, n in sorted(counts.items()):
        seen += n
        if seen >= rank:
            return float(BOUNDS_NS[bucket] / 1e9)
    return math.nan


def _links(run: RunRecords) -> list[Record]:
    return [link for d in run.devices for link in final_links(run.metrics[d], run.events[d]).values()]
