"""A run folder written by hand: three devices, ten rounds of one second; d2 leaves at 4, d3 joins at 7."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emulation.scenario.loading import dump, load

SCENARIO = """
[devices]
count = 3
[round]
count = 10
[correction]
rounds = 3
[eval]
every = 1
[[event]]
round = 4
kind = "leave"
device = "d2"
[[event]]
round = 7
kind = "join"
device = "d3"
"""
GRANTED = 1000
LEFT_S, JOINED_S = 5.5, 8.5
ALL = ("d0", "d1", "d2", "d3")


def members(round_: int) -> tuple[str, ...]:
    if round_ <= 4:
        return ("d0", "d1", "d2")
    return ("d0", "d1") if round_ <= 7 else ("d0", "d1", "d3")


def write(folder: Path) -> Path:
    """Write all files of a run except summary.json and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder.parent / f"{folder.name}-scenario.toml"
    source.write_text(SCENARIO)
    (folder / "scenario.toml").write_text(dump(load(source)))
    for device in ALL:
        _write_device(folder / "devices" / device, device)
    _lines(folder / "evaluations.jsonl", evaluations())
    run = {
        "devices": {d: {"pid": 100 + i, "exit": 0} for i, d in enumerate(ALL)},
        "events": [
            {"round": 4, "kind": "leave", "device": "d2", "t_s": LEFT_S},
            {"round": 7, "kind": "join", "device": "d3", "t_s": JOINED_S},
        ],
        "epoch_ns": 0,
        "ended_s": 11.0,
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def _write_device(folder: Path, device: str) -> None:
    folder.mkdir(parents=True)
    lived = [r for r in range(10) if device in members(r)]
    metrics = [metric(device, r) for r in lived]
    _lines(folder / "metrics.jsonl", metrics)
    number = int(device[1:])
    start = {"t_s": 0.0, "round": -1}
    events: list[dict[str, Any]] = [
        {**start, "event": "started", "pid": 100 + number, "address": "tcp://127.0.0.1:1"},
        {**start, "event": "slot", "incarnation": 0, "slot": number},
    ]
    if device in ("d0", "d1"):
        noticed = LEFT_S + 0.1 * (number + 1)
        events.append(gone("d2", noticed))
        events.append(
            {"t_s": 9.0, "round": 8, "event": "peer_joined", "peer": "d3", "incarnation": 0, "slot": 3}
        )
    if device != "d2":
        events.append({"t_s": 10.9, "round": 9, "event": "exported", "adapter_sha256": f"hash-{device}"})
    finished = {"train_cpu_s": 2.5, "peak_rss_bytes": 1_000_000, "links": links(device, lived[-1])}
    events.append({"t_s": 11.0, "round": lived[-1], "event": "finished", **finished})
    _lines(folder / "events.jsonl", events)


def gone(peer: str, t_s: float) -> dict[str, Any]:
    return {"t_s": t_s, "round": 5, "event": "peer_gone", "peer": peer, "incarnation": 0, "kind": "leave"}


def metric(device: str, round_: int) -> dict[str, Any]:
    peers = [peer for peer in members(round_) if peer != device]
    return {
        "round": round_,
        "phase": "correction" if round_ > 4 else "train",
        "t0_s": float(round_),
        "t1_s": round_ + 1.0,
        "loss": 3.0 - round_ / 10,
        "steps": 5,
        "train_s": 0.5,
        "wait_s": 0.1,
        "weights": {peer: 1 / (1 + len(peers)) for peer in peers},
        "granted_bytes": GRANTED,
        "spent_bytes": GRANTED + 1 if (device, round_) == ("d1", 3) else 800,
        "withheld": 0,
        "members": list(members(round_)),
        "norms": {f"{d}@0": {"early": 1.0, "mid": 2.0, "late": 0.5} for d in members(round_)},
        "links": links(device, round_),
        "arrivals": {peer: arrival(round_) for peer in peers},
    }


def arrival(round_: int) -> dict[str, Any]:
    """The data of one neighbour: sent from half of the round on, and there shortly before its end."""
    return {"depart_s": [round_ + 0.5, round_ + 0.7], "arrive_s": [round_ + 0.6, round_ + 0.9]} | {
        "bytes": 90,
        "messages": 2,
    }


def links(device: str, round_: int) -> dict[str, Any]:
    """Byte counts: 100 bytes to and from each peer in each round. Of the bytes from d0, d1 drops 7."""
    books = {}
    for peer in ALL:
        met = [r for r in range(round_ + 1) if {device, peer} <= {*members(r)}]
        if peer == device or not met:
            continue
        closed = len(met)
        dropped = 7 if (device, peer) == ("d1", "d0") else 0
        books[peer] = {
            "sent_messages": closed,
            "sent_bytes": 100 * closed,
            "received_messages": closed,
            "received_bytes": 100 * closed - dropped,
            "bytes_by_cause": {
                "train": 60 * closed,
                "correction": 30 * closed,
                "transfer": 0,
                "control": 10 * closed,
            },
            "dropped_bytes": {"tombstoned": dropped} if dropped else {},
            "abandoned_bytes": {},
            "latency_s": {"p50": 0.001, "p95": 0.002, "p99": 0.003},
            "latency_counts": {"96": closed - 1, "104": 1},
        }
    return books


def evaluations() -> list[dict[str, Any]]:
    """All facts are known until the leave. Then d2's facts are lost, and the others are back at round 7."""
    lines: list[dict[str, Any]] = []
    for round_ in range(10):
        for device in members(round_):
            leaver = 0.9 if round_ <= 4 else 0.05
            rest = 1.0 if round_ <= 4 or round_ >= 7 else 0.5
            joiner = 0.8 if device == "d0" else 0.9
            lines.append(evaluation(device, round_, "round", rest, leaver, joiner if round_ == 9 else 0.0))
        if round_ == 5:
            for device in ("d0", "d1"):
                lines.append(evaluation(device, 5, "before:d2", 0.98, 0.9, 0.0))
                lines.append(evaluation(device, 5, "deleted:d2", 0.1, 0.04, 0.0))
        if round_ in (8, 9):
            tag = "corrected" if round_ == 8 else "end"
            for device in members(round_):
                joiner = 0.8 if device == "d0" else 0.9
                lines.append(evaluation(device, round_, tag, 1.0, 0.05, joiner))
        lines.append({"round": round_, "tag": "round", "consensus_error": 0.01})
    return lines


def evaluation(
    device: str, round_: int, tag: str, rest: float, leaver: float, joiner: float
) -> dict[str, Any]:
    accuracy = {"d0": rest, "d1": rest, "d2": leaver, "d3": joiner}
    line = {
        "device": device,
        "round": round_,
        "tag": tag,
        "accuracy": accuracy,
        "loss": dict.fromkeys(ALL, 0.25),
    }
    if tag != "round":
        line |= {"other_wording": dict.fromkeys(ALL, 0.02), "control": 0.05}
    return line


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def with_deletions(folder: Path) -> Path:
    """Let d0 and d1 also record that they deleted the block of d2. Returns the folder."""
    for device in ("d0", "d1"):
        path = folder / "devices" / device / "events.jsonl"
        entry = {"round": 5, "event": "deleted", "peer": "d2", "incarnation": 0, "t_s": LEFT_S + 0.5}
        entry |= {"sha256_before": f"{device}-before", "sha256_after": f"{device}-after"}
        path.write_text(path.read_text() + json.dumps(entry) + "\n")
    return folder
