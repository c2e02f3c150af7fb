"""Values over rounds for the charts of a report, from the records of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from emulation.analysis.records import Record, RunRecords, in_order
from emulation.report.line_chart import Mark
from emulation.scenario.events import ARRIVALS

Curve = list[tuple[float, float]]
OfDevice = Callable[[str], Curve]
PLACES = {"before": -0.5, "deleted": -0.4}  # of snapshots around a deletion: between two rounds
NOTHING = float("nan")


def shards(run: RunRecords) -> list[str]:
    """The devices on whose data the run was evaluated."""
    return in_order({shard for e in run.evaluations for shard in e["accuracy"]})


def number(run: RunRecords, shard: str) -> int:
    """The number of the line of a device, the same in all charts. A shard of no device comes after them."""
    order = [*run.devices, *(s for s in shards(run) if s not in run.devices)]
    return order.index(shard)


def accuracy(run: RunRecords, device: str, shard: str) -> Curve:
    """Accuracy of one device on one shard, with a gap for each absence of the device.

    Snapshots just before and after a deletion are placed between two rounds.
    """
    points = [
        (int(e["round"]) + PLACES.get(str(e["tag"]).split(":")[0], 0.0), float(e["accuracy"][shard]))
        for e in run.evaluations
        if e["device"] == device and shard in e["accuracy"]
    ]
    return _by_x([*points, *_gaps(run, device)])


def over_devices(curves: Iterable[Curve], combine: Callable[[list[float]], float] = fmean) -> Curve:
    """One curve from many: at each x, the mean (or another function) of the known values."""
    found: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve:
            if y == y:
                found.setdefault(x, []).append(y)
    return [(x, combine(values)) for x, values in sorted(found.items())]


def of_rounds(run: RunRecords, device: str, value: Callable[[Record], float | None]) -> Curve:
    """A value of each closed round of a device, with a gap for each absence. None: no value in this round."""
    known = [(float(line["round"]), value(line)) for line in run.metrics.get(device, [])]
    return _by_x([*((x, float(y)) for x, y in known if y is not None), *_gaps(run, device)])


def of_summary(rounds: Iterable[Record], key: str) -> Curve:
    """A value of each round in summary.json."""
    return [(float(r["round"]), float(r[key])) for r in rounds if r.get(key) is not None]


def _by_x(points: Iterable[tuple[float, float]]) -> Curve:
    return sorted(points, key=lambda point: point[0])


def _gaps(run: RunRecords, device: str) -> Curve:
    lines = run.metrics.get(device, [])
    found = []
    for event in run.injected:
        if event["kind"] in ARRIVALS and event["device"] == device:
            earlier = [int(line["round"]) for line in lines if line["t1_s"] <= event["t_s"]]
            found += [(max(earlier) + 0.5, NOTHING)] if earlier else []
    return found


def marks(run: RunRecords) -> list[Mark]:
    """The events at their rounds."""
    return [Mark(float(e["round"]), name_of(e)) for e in run.injected]


def name_of(event: Record) -> str:
    """Such as `d5 leave`; an event of the network has no device."""
    return f"{event.get('device') or ''} {event['kind']}".strip()


# -- bytes and corrections -------------------------------------------------------------------------------
def sent_matrices(run: RunRecords) -> dict[str, dict[str, Curve]]:
    """Matrices that all devices sent in each round, by group and codec."""
    counts: dict[str, dict[str, dict[int, int]]] = {}
    rounds = {int(line["round"]) for lines in run.metrics.values() for line in lines if line.get("sent")}
    for lines in run.metrics.values():
        for line in lines:
            for group, by_codec in line.get("sent", {}).items():
                for codec, count in by_codec.items():
                    own = counts.setdefault(group, {}).setdefault(codec, dict.fromkeys(rounds, 0))
                    own[int(line["round"])] += int(count)
    return {
        group: {codec: [(float(r), float(n)) for r, n in sorted(own.items())] for codec, own in found.items()}
        for group, found in sorted(counts.items(), key=lambda item: _layer(run, item[0]))
    }


def _layer(run: RunRecords, group: str) -> int:
    """The place of a group among the groups, from the input to the output of the model."""
    lines = (line for lines in run.metrics.values() for line in lines if line.get("norms"))
    groups = list(next(iter(next(lines, {"norms": {"": ()}})["norms"].values())))
    return groups.index(group) if group in groups else len(groups)


def decisions(run: RunRecords) -> list[Record]:
    """The decisions of the correction policy, one for each measured round.

    All devices decide from the same reports. `differ`: the number of devices that decided otherwise, because
    reports had not reached them.
    """
    found: dict[int, list[Record]] = {}
    for device in run.devices:
        for event in run.events[device]:
            if event["event"] == "decision":
                found.setdefault(int(event["epoch"]), []).append(event)
    chosen = []
    for _, same in sorted(found.items()):
        most = max(same, key=lambda e: sum(_settings(e) == _settings(o) for o in same))
        chosen.append({**most, "differ": sum(_settings(e) != _settings(most) for e in same)})
    return chosen


def _settings(decision: Record) -> object:
    return decision.get("groups"), decision.get("added_edges")


def residuals(found: Iterable[Record]) -> dict[str, dict[str, Curve]]:
    """By group: the values that were logged with each decision, over rounds."""
    curves: dict[str, dict[str, Curve]] = {}
    for decision in found:
        by_group: Mapping[str, Mapping[str, float]] = decision.get("residuals", {})
        for group, values in by_group.items():
            for name, value in values.items():
                curves.setdefault(group, {}).setdefault(name, []).append(
                    (float(decision["epoch"]), float(value))
                )
    return curves
