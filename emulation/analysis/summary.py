"""Builds summary.json of a run from the records of its devices, its evaluator and its launcher.

A value that the records do not contain is null. docs/records.md describes the keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np

from coordinator_free.averaging.topology import spectral_rho
from emulation.analysis import event_outcomes, forgotten_files, latency_histogram, records, tombstones, unmet
from emulation.analysis.link_totals import final_links, sent_by_round, total_sent
from emulation.analysis.masked_diagnoses import masked_diagnoses
from emulation.analysis.records import Record, RunRecords
from emulation.analysis.rounds_alone import rounds_alone
from peers.learning.privacy_account import account_path
from transport.shaping.accounting import PER_DECADE, open_bytes

SCHEMA = 1
TOTAL = "spent_total_bytes"
CAUSES = ("train", "correction", "transfer", "control")


def write(folder: Path) -> Record:
    """Write summary.json into the folder of a run and return it. Raises InputError for another folder."""
    summary = build(folder)
    text = json.dumps(summary, indent=1, allow_nan=False)
    records.write_whole(folder / "summary.json", text + "\n")
    return summary


def build(folder: Path) -> Record:
    """The summary of the folder of a run. The run may be unfinished or failed."""
    return summarise(records.load(folder))


def summarise(run: RunRecords) -> Record:
    """The summary of the records of a run."""
    accuracy = _accuracy(run)
    links = {device: final_links(run.metrics[device], run.events[device]) for device in run.devices}
    rounds = _rounds(run)
    sent = sum(total_sent(links[device]) for device in run.devices)
    return {
        "schema": SCHEMA,
        "seed": run.scenario.seed,
        "clock": run.scenario.clock,
        "scenario": run.scenario.name,
        "unfinished": run.unfinished,  # if true, accuracy and final are those of the last evaluated rounds
        "devices": [_device(run, device, links[device]) for device in run.devices],
        "links": _links(links),
        "latency_buckets": {"first_s": latency_histogram.FIRST_S, "per_decade": PER_DECADE},  # upper bounds
        "events": event_outcomes.event_outcomes(run),
        "not_done": run.run.get("not_done", []),  # events of the scenario that did not happen
        "resumed": run.run.get("resumed", []),  # when the run went on after an interruption
        "unmet": unmet.separate_groups(run),
        "rounds": rounds,
        "rounds_alone": rounds_alone(run),
        # handshakes before the first round, and what was sent after the last one: sent = rounds + this
        "outside_rounds_bytes": sent - sum(int(entry["bytes"]) for entry in rounds),
        "accuracy": accuracy,
        "final": _final(run, accuracy),
        "control_accuracy": _end_mean(run, "control"),
        "other_wording_accuracy": _other_wording(run, accuracy["devices"]),
        "budget": _budget(run),
        # beside the devices, and in no `train_cpu_s`; null if the evaluator has not come to its end
        "evaluator": records.read_object(run.folder / records.EVALUATOR_FILE) or None,
        "forgotten": forgotten_files.report(run),
        "unconfirmed_leaves": [str(block) for block in tombstones.unconfirmed(run)],
        **_privacy(run),
        **_masked(run),
    }


def _privacy(run: RunRecords) -> Record:
    """delta, the target (0: none), whether the noise is secret, and what each device has spent."""
    config = run.scenario.privacy
    if not config.on:
        return {}
    paths = {device: account_path(run.folder, device) for device in run.devices}
    spent = {device: finite(records.read_object(path).get("epsilon", 0.0)) for device, path in paths.items()}
    secret = config.randomness == "secret"
    return {"privacy": {"delta": config.delta, "target": config.epsilon, "secret": secret, "epsilon": spent}}


def _masked(run: RunRecords) -> Record:
    found = masked_diagnoses(run)
    return {} if found is None else {"masked": found}


def finite(value: float) -> float | None:
    """The value; None if it is infinite or no number, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def _device(run: RunRecords, device: str, links: Mapping[str, Record]) -> Record:
    events, launched = run.events[device], run.run.get("devices", {}).get(device, {})
    finished = _latest(events, "finished")
    slot = _latest(events, "slot")
    started = _latest(events, "started")
    return {
        "id": device,
        "incarnation": slot.get("incarnation", started.get("incarnation")),
        "pid": launched.get("pid", started.get("pid")),
        "exit": launched.get("exit"),
        "failure": _latest(events, "failed").get("reason"),
        "slot": slot.get("slot", started.get("slot")),
        "rounds": len(run.metrics[device]),
        "bytes_sent": sum(int(link.get("sent_bytes", 0)) for link in links.values()),
        "bytes_received": sum(int(link.get("received_bytes", 0)) for link in links.values()),
        "peak_rss_bytes": finished.get("peak_rss_bytes"),
        "peak_pss_bytes": finished.get("peak_pss_bytes"),
        "train_cpu_s": finished.get("train_cpu_s"),
        "security_events": finished.get("security_events"),
        "adapter_sha256": _adapter_sha256(run, device),
    }


def _adapter_sha256(run: RunRecords, device: str) -> str | None:
    """Of the adapter that is there. The device did not record a deletion after its end."""
    event: str | None = _latest(run.events[device], "exported").get("adapter_sha256")
    about = run.folder / "adapters" / device / "unweft.json"
    if event is None or not about.is_file():
        return event
    found: str | None = json.loads(about.read_text(encoding="utf-8")).get("adapter_sha256")
    return found or event


def _latest(events: Iterable[Record], name: str) -> Record:
    return next((e for e in reversed(list(events)) if e["event"] == name), {})


def _links(links: Mapping[str, Mapping[str, Record]]) -> list[Record]:
    """One entry for each direction. The sender counts the sent bytes, the receiver the received ones."""
    pairs = {(src, dst) for src, peers in links.items() for dst in peers}
    pairs |= {(dst, src) for src, dst in pairs}
    entries = []
    for src, dst in sorted(pairs):
        out, into = links.get(src, {}).get(dst, {}), links.get(dst, {}).get(src, {})
        entries.append(_link(src, dst, out, into))
    return [e for e in entries if e["messages"] or e["received_bytes"] or e["dropped_bytes"]]


def _link(src: str, dst: str, out: Record, into: Record) -> Record:
    lost = out.get("lost_bytes", 0)
    return {
        "src": src,
        "dst": dst,
        "messages": out.get("sent_messages", 0),
        "sent_bytes": out.get("sent_bytes", 0),
        "payload_bytes": out.get("payload_bytes", 0),  # of the sent bytes: tensors,
        "header_bytes": out.get("header_bytes", 0),  # headers,
        "frame_bytes": out.get("frame_bytes", 0),  # framing and encryption
        "received_bytes": into.get("received_bytes", 0),
        "dropped_bytes": into.get("dropped_bytes", {}) | ({"loss": lost} if lost else {}),
        "open_bytes": open_bytes(out, into),  # not 0 only if one end crashed
        "bytes_by_cause": dict.fromkeys(CAUSES, 0) | out.get("bytes_by_cause", {}),
        "latency_s": into.get("latency_s") or {"p50": None, "p95": None, "p99": None},
        "latency_counts": into.get("latency_counts", {}),  # by bucket, of processes that ended normally
        "clock_s": into.get("clock_s"),  # the receiver's clock less the sender's; None: on one host
        "abandoned_bytes": out.get("abandoned_bytes", {}),  # removed from the queue before sending
    }


def _rounds(run: RunRecords) -> list[Record]:
    by_round: dict[int, dict[str, Record]] = {}
    for device in run.devices:
        for line in run.metrics[device]:
            by_round.setdefault(int(line["round"]), {})[device] = line
    sent = {device: sent_by_round(run.metrics[device]) for device in run.devices}
    mixes = run.scenario.mixing.mode != "newest"  # newest replaces copies and uses no mixing matrix
    rounds = []
    for number, lines in sorted(by_round.items()):
        rho = _rho(lines)
        rounds.append(
            {
                "round": number,
                "seconds": fmean(float(line["t1_s"]) - float(line["t0_s"]) for line in lines.values()),
                "bytes": sum(sent[device].get(number, 0) for device in lines),
                "consensus_error": run.consensus.get(number),
                "spectral_rho": rho if mixes else None,
                "graph_rho": rho,  # of the weights of the graph, which the mode may not use
            }
        )
    return rounds


def _rho(lines: Mapping[str, Record]) -> float | None:
    """||W - J||_2 of the mixing weights of a round; None if the row of a weighted device is missing."""
    members = list(lines)
    matrix = np.zeros((len(members), len(members)))
    for i, device in enumerate(members):
        weights: Mapping[str, float] = lines[device].get("weights", {})
        if any(peer not in lines for peer in weights):
            return None
        for peer, weight in weights.items():
            matrix[i, members.index(peer)] = weight
        matrix[i, i] = 1 - sum(w for peer, w in weights.items() if peer != device)
    return spectral_rho(matrix)


def _accuracy(run: RunRecords) -> Record:
    """The last accuracy of each live device (row) on the training examples of each live device (column)."""
    ends = {e["device"]: e["accuracy"] for e in run.last_evaluations()}
    devices = records.in_order(set(ends))
    matrix = [[ends[device].get(shard) for shard in devices] for device in devices]
    return {"devices": devices, "shards": devices, "matrix": matrix}


def _final(run: RunRecords, accuracy: Record) -> Record:
    devices, matrix = accuracy["devices"], accuracy["matrix"]
    known = [value for row in matrix for value in row if value is not None]
    losses = {e["device"]: e["loss"] for e in run.last_evaluations()}
    own = [matrix[i][i] for i in range(len(devices)) if matrix[i][i] is not None]
    return {
        "loss": mean(losses[device].get(shard) for device in devices for shard in devices),
        "accuracy_own": mean(own),
        "accuracy_all": mean(known),
        "accuracy_min": min(known, default=None),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _end_mean(run: RunRecords, key: str) -> float | None:
    """Mean over the devices that reached the end."""
    return mean({e["device"]: e.get(key) for e in run.tagged("end")}.values())


def _other_wording(run: RunRecords, devices: list[str]) -> float | None:
    """Mean accuracy of live devices on their facts in a wording that is never trained."""
    ends = {e["device"]: e.get("other_wording", {}) for e in run.tagged("end")}
    return mean(row.get(shard) for row in ends.values() for shard in devices)


def _violations(run: RunRecords, device: str) -> int:
    """Rounds that exceeded their budget. Only a device that ended normally has counted its last round."""
    seen = sum(int(line["spent_bytes"]) > int(line["granted_bytes"]) for line in run.metrics[device])
    return max(seen, sum(int(e.get("violations", 0)) for e in run.events[device] if e["event"] == "finished"))


def _spent(run: RunRecords, device: str) -> int:
    """The cost of all that a device sent, also outside rounds. A crashed life counts up to its last round.

    Records of older versions have only the cost of each round.
    """
    metrics, finished = run.metrics[device], [e for e in run.events[device] if e["event"] == "finished"]
    totals = {line["life"]: int(line[TOTAL]) for line in [*metrics, *finished] if TOTAL in line}
    return sum(totals.values()) + sum(int(m["spent_bytes"]) for m in metrics if m["life"] not in totals)


def _budget(run: RunRecords) -> Record:
    lines = [line for device in run.devices for line in run.metrics[device]]
    return {
        "granted_bytes": sum(int(line["granted_bytes"]) for line in lines),
        "spent_bytes": sum(_spent(run, device) for device in run.devices),
        "violations": sum(_violations(run, device) for device in run.devices),
    }
