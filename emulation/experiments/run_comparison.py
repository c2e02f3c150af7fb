"""Compares runs, or runs of many seeds, by their summaries: `unweft compare` and `unweft run --seeds`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from emulation.analysis import records, summary
from emulation.analysis.records import Record, RunRecords, write_whole
from emulation.experiments.statistics import Interval, interval
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.section import Section

SEEDS_FILE = "seeds.json"
Measure = Callable[[Record], float | None]
MEASURES: Mapping[str, Measure] = {
    "accuracy_all": lambda s: s["final"]["accuracy_all"],
    "accuracy_own": lambda s: s["final"]["accuracy_own"],
    "accuracy_min": lambda s: s["final"]["accuracy_min"],
    "control_accuracy": lambda s: s["control_accuracy"],
    "loss": lambda s: s["final"]["loss"],
    "sent_bytes": lambda s: sum(device["bytes_sent"] for device in s["devices"]),
    "round_s": lambda s: fmean(entry["seconds"] for entry in s["rounds"]) if s["rounds"] else None,
    "budget_violations": lambda s: s["budget"]["violations"],
}


def seed_folder(folder: Path, seed: int) -> Path:
    """The folder of one run of `unweft run --seeds`."""
    return folder / f"seed-{seed}"


@dataclass(frozen=True)
class Subject:
    """A run, or runs that differ in their seeds only. runs: records by seed. summaries: by seed."""

    name: str
    runs: Mapping[int, RunRecords]
    summaries: Mapping[int, Record]

    @property
    def scenario(self) -> Scenario:
        """The scenario of the first seed."""
        return next(iter(self.runs.values())).scenario

    def values(self, measure: Measure) -> dict[int, float]:
        """The known values of a measure, by seed."""
        found = {seed: measure(summary) for seed, summary in self.summaries.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None}


def read(folder: Path) -> Subject:
    """Read a folder of `unweft run`, with or without --seeds. Raises InputError for another folder."""
    folders = [folder]
    if not (folder / "scenario.toml").exists():
        folders = sorted(path.parent for path in folder.glob("seed-*/scenario.toml"))
    if not folders:
        raise InputError(f"{folder}: holds no run; allowed: a folder that `unweft run` wrote")
    runs = [records.load(one) for one in folders]
    runs.sort(key=lambda run: run.scenario.seed)
    return Subject(
        folder.name or str(folder),
        {run.scenario.seed: run for run in runs},
        {run.scenario.seed: summary.summarise(run) for run in runs},
    )


@dataclass(frozen=True)
class Row:
    """One measure of all subjects. difference: to the first subject, over the seeds that both have."""

    measure: str
    means: tuple[Interval | None, ...]
    differences: tuple[Interval | None, ...]


def rows(subjects: Sequence[Subject]) -> list[Row]:
    """One row for each measure that a subject has a value of."""
    found = []
    for name, measure in {**MEASURES, **_event_measures(subjects)}.items():
        values = [subject.values(measure) for subject in subjects]
        if any(values):
            means = tuple(interval(list(of.values())) for of in values)
            found.append(Row(name, means, tuple(_paired(of, values[0]) for of in values[1:])))
    return found


def _paired(values: Mapping[int, float], first: Mapping[int, float]) -> Interval | None:
    return interval([value - first[seed] for seed, value in values.items() if seed in first])


def _event_measures(subjects: Sequence[Subject]) -> dict[str, Measure]:
    """Measures of each event that the scenario of the first subject lists: by kind, device and round."""
    found: dict[str, Measure] = {}
    for event in subjects[0].scenario.events:
        key = event.round, event.kind, event.device or ""
        head = " ".join([event.kind, *([event.device] if event.device else []), f"at {event.round}"])
        found[f"{head}: survivors deleted"] = _of_event(key, "survivor_accuracy", "deleted")
        found[f"{head}: survivors corrected"] = _of_event(key, "survivor_accuracy", "corrected")
        found[f"{head}: leaver at the end"] = _of_event(key, "leaver_accuracy", "end")
        found[f"{head}: joiner at the end"] = _of_event(key, "joiner_accuracy", "end_mean")
        found[f"{head}: rounds to recover"] = _of_event(key, "rounds_to_recover")
    return found


def _of_event(key: tuple[int, str, str], *path: str) -> Measure:
    def measure(summary: Record) -> float | None:
        for event in summary["events"]:
            if (event["round"], event["kind"], event["device"]) == key:
                value = event
                for part in path:
                    value = value.get(part) if isinstance(value, dict) else None
                return None if value is None else float(value)
        return None

    return measure


def scenario_differences(subjects: Sequence[Subject]) -> dict[str, list[object]]:
    """The keys whose values differ between the scenarios, with the value of each. Names are left out."""
    tables = [dict(_flat(subject.scenario)) for subject in subjects]
    many = any(len(subject.runs) > 1 for subject in subjects)
    skipped = {"name", *(("seed",) if many else ())}
    keys = dict.fromkeys(key for table in tables for key in table if key not in skipped)
    found = {key: [table.get(key) for table in tables] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _flat(section: Section, path: str = "") -> Iterator[tuple[str, object]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        where = f"{path}.{name}" if path else name
        if isinstance(value, Section):
            yield from _flat(value, where)
        else:
            yield where, value


def accuracy_curve(run: RunRecords) -> list[tuple[int, float]]:
    """Mean accuracy of the evaluated devices on all evaluated devices' data, by round."""
    by_round: dict[int, list[Record]] = {}
    for line in run.tagged("round"):
        by_round.setdefault(int(line["round"]), []).append(line)
    curve = []
    for round_, lines in sorted(by_round.items()):
        live = {line["device"] for line in lines}
        known = [a for line in lines for shard, a in line["accuracy"].items() if shard in live]
        curve += [(round_, fmean(known))] if known else []
    return curve


def write_seeds(folder: Path, subject: Subject) -> None:
    """Write seeds.json: the values of each measure by seed, and their mean with its interval."""
    measures = {**MEASURES, **_event_measures([subject])}
    found = {}
    for name, measure in measures.items():
        values = subject.values(measure)
        mean = interval(list(values.values()))
        if mean is not None:
            found[name] = {"by_seed": {str(seed): value for seed, value in values.items()}, **asdict(mean)}
    write_whole(folder / SEEDS_FILE, json.dumps(found, indent=1) + "\n")
