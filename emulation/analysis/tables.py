"""The records of a run as flat tables: one dict for each row, with the same keys in all rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from emulation.analysis.records import Record, RunRecords

Rows = list[Record]


def rounds(run: RunRecords, summary: Record) -> Rows:
    """One row for each closed round of a device: times, loss, steps and bytes, from metrics.jsonl."""
    names = ("phase", "t0_s", "t1_s", "loss", "steps", "train_s", "wait_s", "granted_bytes", "spent_bytes")
    return [
        {"device": device, "life": line["life"], "round": line["round"]}
        | {name: line.get(name) for name in (*names, "withheld")}
        | {"members": len(line.get("members", []))}
        for device in run.devices
        for line in run.metrics[device]
    ]


def links(run: RunRecords, summary: Record) -> Rows:
    """One row for each direction of a link: bytes, by cause and dropped, and latencies."""
    return [
        {name: value for name, value in link.items() if not isinstance(value, Mapping)}
        | {f"{cause}_bytes": count for cause, count in link["bytes_by_cause"].items()}
        | {"dropped_bytes": sum(link["dropped_bytes"].values())}
        | {f"latency_{name}_s": value for name, value in link["latency_s"].items()}
        for link in summary["links"]
    ]


def events(run: RunRecords, summary: Record) -> Rows:
    """One row for each event that happened, with its outcome."""
    return [_flat(event) for event in summary["events"]]


def accuracy(run: RunRecords, summary: Record) -> Rows:
    """One row for each evaluation of a device on the training examples of a device (`shard`)."""
    return [
        {"device": e["device"], "shard": shard, "round": e["round"], "tag": e["tag"]}
        | {"accuracy": value, "loss": e["loss"].get(shard)}
        for e in run.evaluations
        for shard, value in e["accuracy"].items()
    ]


def devices(run: RunRecords, summary: Record) -> Rows:
    """One row for each device, over all its lives."""
    return [
        {name: value for name, value in device.items() if not isinstance(value, Mapping)}
        for device in summary["devices"]
    ]


TABLES: Mapping[str, Callable[[RunRecords, Record], Rows]] = {
    "devices": devices,
    "rounds": rounds,
    "links": links,
    "events": events,
    "accuracy": accuracy,
}


def _flat(record: Record) -> Record:
    """Nested tables become keys such as `detected_s.max`."""
    found: Record = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": leaf for inner, leaf in _flat(dict(value)).items()}
        else:
            found[name] = value
    return found


def folder_of(run: Path) -> Path:
    """The folder for exported tables in the folder of a run."""
    return run / "tables"
