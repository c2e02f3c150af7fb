"""The measures of one run of an experiment: scores and costs by round, and a digest of its first rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from statistics import fmean

from emulation.analysis.evaluator import KEPT_SNAPSHOTS
from emulation.analysis.link_totals import sent_by_round
from emulation.analysis.records import Record, RunRecords, load
from emulation.experiments.arms import ORACLES
from emulation.experiments.evaluation import MeanModelEvaluator, write_mean
from emulation.experiments.grid import Cell
from peers.errors import InputError

REAL_TIME = ("compute_s", "cpu_s")  # keys of metrics.jsonl that depend on the machine


def measure_run(cell: Cell, folder: Path) -> Record:
    """The measures of a cell, from the folder of its run with the kept snapshots. Raises InputError."""
    run = load(folder)
    # The oracle has no event. Its k counts from its first round.
    start = -1 if cell.arm.name in ORACLES else cell.event_round
    return {
        **cell_key(cell),
        "prefix_sha256": prefix_digest(run, cell.event_round) if cell.arm.branches else None,
        "curve": _curve(cell, run, start),
        "worst_loss": worst_loss(run, cell),
        "metrics": end_metrics(run, cell),
        "decisions": _decisions(run, cell),
        "exits": {device: found["exit"] for device, found in run.run["devices"].items()},
    }


def cell_key(cell: Cell) -> Record:
    """The identity of a cell in rows."""
    return {"setting": cell.setting.name, "arm": cell.arm.name, "seed": cell.seed}


def prefix_digest(run: RunRecords, last: int) -> str:
    """SHA-256 of the metrics of all devices in the rounds up to `last`, without real times."""
    lines = [
        {"device": device} | {key: value for key, value in line.items() if key not in REAL_TIME}
        for device in run.devices
        for line in run.metrics[device]
        if line["round"] <= last
    ]
    return sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()


# -- the curve -----------------------------------------------------------------------------------------
def _curve(cell: Cell, run: RunRecords, start: int) -> list[Record]:
    """For each k: the scores of the mean model, and the costs from the event (or the start) until then."""
    scenario = run.scenario
    evaluator = MeanModelEvaluator(scenario, cell.retained, cell.leaver)
    costs = Costs(cell, run, start)
    found = []
    mean = run.folder / "mean.safetensors"
    for k, snapshots in snapshots_by_k(cell, run.folder / KEPT_SNAPSHOTS, start):
        write_mean(snapshots, mean)
        found.append({"k": k, **evaluator.score_snapshot(mean).to_dict(), **costs.until(start + k)})
    mean.unlink(missing_ok=True)
    if not found or found[-1]["k"] != scenario.round.count - 1 - start:
        raise InputError(f"{run.folder}: lacks snapshots of the last round; allowed: a run that finished")
    return found


def snapshots_by_k(cell: Cell, kept: Path, start: int) -> Iterator[tuple[int, list[Path]]]:
    """k and the snapshots of all survivors: right after the unlearning (k = 0), then the evaluated rounds.

    A baseline that keeps the leaver's block may write snapshots after its own unlearning (unlearners.py).
    With neither of them, k = 0 is the last round before the event. Rounds that lack the snapshot of a
    survivor are left out.
    """
    deleted = [
        path
        for device in cell.survivors
        for how in ("deleted", "unlearned")
        for path in (kept / device).glob(f"*-{how}-{cell.leaver}.*")
    ]
    if len(deleted) == len(cell.survivors):
        yield 0, deleted
    by_round: dict[int, list[Path]] = {}
    for device in cell.survivors:
        for path in (kept / device).glob("*-round.safetensors"):
            by_round.setdefault(int(path.name.split("-")[0]), []).append(path)
    for round_, paths in sorted(by_round.items()):
        at_event = round_ == start and not deleted
        if len(paths) == len(cell.survivors) and (round_ > start or at_event):
            yield round_ - start, paths


class Costs:
    """The costs of the survivors: sent bytes, local steps, seconds of the clock, CPU seconds."""

    def __init__(self, cell: Cell, run: RunRecords, start: int) -> None:
        self._start = start
        self._lines = {d: run.metrics[d] for d in cell.survivors}
        self._sent = {d: sent_by_round(run.metrics[d]) for d in cell.survivors}

    def until(self, last: int) -> Record:
        """The costs after the start up to `last`. Steps: mean over devices.

        Seconds: slowest device. Bytes and CPU seconds: sum over devices.
        """
        rounds = range(self._start + 1, last + 1)
        spent = {d: [line for line in lines if line["round"] in rounds] for d, lines in self._lines.items()}
        seconds = [own[-1]["t1_s"] - own[0]["t0_s"] for own in spent.values() if own]
        return {
            "bytes": sum(sent.get(r, 0) for sent in self._sent.values() for r in rounds),
            "steps": fmean(sum(int(line["steps"]) for line in own) for own in spent.values()),
            "seconds": max(seconds, default=0.0),
            "cpu_s": sum(line["cpu_s"] for own in spent.values() for line in own),
        }


# -- the end and the decisions -------------------------------------------------------------------------
def worst_loss(run: RunRecords, cell: Cell) -> float | None:
    """The largest L_evt of a survivor's own model at the end; None if a value is missing."""
    losses = []
    for line in run.tagged("end"):
        if line["device"] in cell.survivors:
            losses.append([line["loss"].get(shard) for shard in cell.survivors])
    if len(losses) != len(cell.survivors) or any(x is None for own in losses for x in own):
        return None
    return max(fmean(own) for own in losses)


def end_metrics(run: RunRecords, cell: Cell) -> dict[str, dict[str, float]]:
    """The metrics of `eval.metrics` at the end, as means over the survivors' models. Empty without any.

    By metric: `forget` on the data of the device of the event, `retain` on the survivors' data. Metrics that
    have no shard, such as the model utility, have `all`.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for line in run.tagged("end"):
        if line["device"] in cell.survivors:
            for name, of in line.get("metrics", {}).items():
                by_shard = of if isinstance(of, Mapping) else {} if of is None else {"": of}
                for shard, value in by_shard.items():
                    about = (
                        "forget" if shard == cell.leaver else "retain" if shard in cell.survivors else "all"
                    )
                    found.setdefault(name, {}).setdefault(about, []).append(float(value))
    return {name: {about: fmean(values) for about, values in of.items()} for name, of in found.items()}


def _decisions(run: RunRecords, cell: Cell) -> list[Record]:
    """The decisions, with reasons and residuals. All survivors decide alike, so those of one are enough.

    k: the round of the decision after the event. measured_k: that of the diagnosis behind it.
    """
    return [
        {
            **{"k": int(e["round"]) - cell.event_round, "measured_k": int(e["epoch"]) - cell.event_round},
            **{n: e[n] for n in ("reason", "groups", "residuals")},
        }
        for e in run.events[cell.survivors[0]]
        if e["event"] == "decision"
    ]
