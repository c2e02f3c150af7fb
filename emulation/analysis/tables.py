"""The records of a run as flat tables: one dict for each row, with the same keys in all rows of a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from emulation.analysis import records, summary
from emulation.analysis.records import Record, RunRecords
from peers.errors import InputError

Rows = list[Record]
Save = Callable[[Path, Rows], None]


def rounds(run: RunRecords, found: Record) -> Rows:
    """One row for each closed round of a device: times, loss, steps and bytes, from metrics.jsonl."""
    names = ("phase", "t0_s", "t1_s", "loss", "steps", "train_s", "wait_s", "granted_bytes", "spent_bytes")
    return [
        {"device": device, "life": line["life"], "round": line["round"]}
        | {name: line.get(name) for name in (*names, "withheld")}
        | {"members": len(line.get("members", []))}
        for device in run.devices
        for line in run.metrics[device]
    ]


def links(run: RunRecords, found: Record) -> Rows:
    """One row for each direction of a link: bytes, by cause and dropped, latencies and clocks."""
    return [
        {name: value for name, value in link.items() if not isinstance(value, Mapping)}
        | {f"{cause}_bytes": count for cause, count in link["bytes_by_cause"].items()}
        | {"dropped_bytes": sum(link["dropped_bytes"].values())}
        | {f"latency_{name}_s": value for name, value in link["latency_s"].items()}
        | {f"clock_{name}_s": (link.get("clock_s") or {}).get(name) for name in ("difference", "error")}
        for link in found["links"]
    ]


def events(run: RunRecords, found: Record) -> Rows:
    """One row for each event that happened, with its outcome."""
    return [_flat(event) for event in found["events"]]


def accuracy(run: RunRecords, found: Record) -> Rows:
    """One row for each evaluation of a device on the training examples of a device (`shard`)."""
    return [
        {"device": e["device"], "shard": shard, "round": e["round"], "tag": e["tag"]}
        | {"accuracy": value, "loss": e["loss"].get(shard)}
        for e in run.evaluations
        for shard, value in e["accuracy"].items()
    ]


def devices(run: RunRecords, found: Record) -> Rows:
    """One row for each device, over all its lives."""
    return [
        {name: value for name, value in device.items() if not isinstance(value, Mapping)}
        for device in found["devices"]
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


# -- files -------------------------------------------------------------------------------------------------
def write(folder: Path, out: Path, form: str) -> list[Path]:
    """Write all tables of a run as out/NAME.csv or out/NAME.parquet; returns their paths.

    Raises InputError if the folder holds no run, or for Parquet without pyarrow.
    """
    save = _WRITERS[form]()
    run = records.load(folder)
    made = summary.summarise(run)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"--out: {out} is a file; allowed: a folder") from None
    paths = []
    for name, table in TABLES.items():
        paths.append(out / f"{name}.{form}")
        save(paths[-1], table(run, made))
    return paths


def _csv_writer() -> Save:
    return _save_csv


def _save_csv(path: Path, rows: Rows) -> None:
    """A list in a cell is written as JSON."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})


def _parquet_writer() -> Save:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "--format parquet: pyarrow is not installed; allowed: csv, or pip install 'unweft[tables]'"
        ) from None
    return lambda path, rows: parquet.write_table(pyarrow.Table.from_pylist(rows), path)


_WRITERS: Mapping[str, Callable[[], Save]] = {"csv": _csv_writer, "parquet": _parquet_writer}
