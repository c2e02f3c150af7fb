"""What a run wrote, for those who read it: lines of JSON in the forms of docs/records.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulation.scenario.events import GONE
from emulation.scenario.loading import read
from emulation.scenario.schema import Scenario
from peers.errors import InputError

Record = dict[str, Any]


def read_lines(path: Path) -> list[Record]:
    """All whole records; none if there is no file."""
    return list(Tail(path).read())


def last_line(log: Path) -> str:
    """What a log ends with, blank lines left out."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Tail:
    """Follows a growing file: each `read` yields the records that are new and whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def read(self) -> Iterator[Record]:
        """New records. A last line without its end waits for the rest; a torn one in between is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            record = _parse(line)
            if record is not None:
                yield record


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # half a line of a killed device, which another incarnation then wrote on
        return None
    return record if isinstance(record, dict) else None


@dataclass
class RunRecords:
    """A run folder, read. Device ids are in natural order (d2 before d10)."""

    folder: Path
    scenario: Scenario
    devices: list[str]
    metrics: dict[str, list[Record]] = field(default_factory=dict)
    events: dict[str, list[Record]] = field(default_factory=dict)
    evaluations: list[Record] = field(default_factory=list)
    consensus: dict[int, float] = field(default_factory=dict)  # by round
    run: Record = field(default_factory=dict)

    @property
    def injected(self) -> list[Record]:
        """What the launcher did to devices, in order: round, kind, device, t_s."""
        return sorted(self.run.get("events", []), key=lambda e: (float(e["t_s"]), int(e["round"])))

    @property
    def unfinished(self) -> bool:
        """Whether no device has reached the end yet."""
        return not any(e["tag"] == "end" for e in self.evaluations)

    def standing(self) -> list[Record]:
        """The last evaluation of each device that reached the end; while none has, of each that is there."""
        if not self.unfinished:
            return self.tagged("end")
        last = {str(e["device"]): str(e["kind"]) for e in self.injected}
        return [e for e in self.tagged("round") if last.get(e["device"]) not in GONE]

    def tagged(self, tag: str) -> list[Record]:
        """Evaluations with a tag, in the order of their rounds."""
        return sorted((e for e in self.evaluations if e["tag"] == tag), key=lambda e: int(e["round"]))


def load(folder: Path) -> RunRecords:
    """Raises InputError if the folder is not one that `unweft run` wrote."""
    if not (folder / "scenario.toml").is_file():
        raise InputError(
            f"{folder}: holds no run (no scenario.toml); allowed: a folder that `unweft run` wrote"
        )
    run_file = folder / "run.json"
    run = (_parse(run_file.read_bytes()) or {}) if run_file.exists() else {}
    found = {path.name for path in (folder / "devices").glob("*") if path.is_dir()}
    records = RunRecords(folder, read(folder / "scenario.toml"), in_order({*found, *run.get("devices", {})}))
    records.run = run
    for device in records.devices:
        records.metrics[device] = read_lines(folder / "devices" / device / "metrics.jsonl")
        records.events[device] = read_lines(folder / "devices" / device / "events.jsonl")
    for line in read_lines(folder / "evaluations.jsonl"):
        if "consensus_error" in line:
            records.consensus[int(line["round"])] = float(line["consensus_error"])
        else:
            records.evaluations.append(line)
    return records


def write_run(
    folder: Path, devices: Mapping[str, Record], events: Sequence[Record], epoch_ns: int, ended_s: float
) -> None:
    """run.json, as `load` reads it. `devices`: what a launcher knows of each, its `exit` among that."""
    run = {"devices": devices, "events": events, "epoch_ns": epoch_ns, "ended_s": ended_s}
    (folder / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")


def in_order(devices: set[str] | list[str]) -> list[str]:
    """Natural order."""
    return sorted(devices, key=lambda d: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", d)])
