"""The outcome of each injected event: detection times, accuracies, and the cost of the recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, median

from emulation.analysis import event_metrics
from emulation.analysis.link_totals import sent_by_round
from emulation.analysis.records import Record, RunRecords
from emulation.scenario.events import ARRIVALS, GONE

RECOVERED = 0.95  # share of the accuracy before the event
Choose = Callable[[str], Record | None]  # device -> the evaluation that is used


@dataclass
class InjectedEvent:
    """One injected event and its survivors."""

    run: RunRecords
    record: Record
    survivors: list[str]  # live before the event, without its device

    @property
    def round(self) -> int:
        return int(self.record["round"])

    @property
    def t_s(self) -> float:
        return float(self.record["t_s"])

    @property
    def device(self) -> str:
        return str(self.record["device"])

    def detections(self) -> dict[str, Record]:
        """Survivor -> its first record of the event at or after the injection."""
        name = "peer_joined" if self.record["kind"] in ARRIVALS else "peer_gone"
        found: dict[str, Record] = {}
        for survivor in self.survivors:
            for entry in self.run.events.get(survivor, []):
                if entry["event"] == name and entry.get("peer") == self.device and entry["t_s"] >= self.t_s:
                    found.setdefault(survivor, entry)
        return found


def event_outcomes(run: RunRecords) -> list[Record]:
    """The list `events` of summary.json, in the order of injection."""
    return [_outcome(event) for event in injected_events(run)]


def injected_events(run: RunRecords) -> list[InjectedEvent]:
    """The injected events in order, each with its survivors."""
    live = list(run.scenario.initial_devices)
    found = []
    for record in run.injected:
        found.append(InjectedEvent(run, record, [d for d in live if d != record["device"]]))
        live = [d for d in live if d != record["device"] or record["kind"] not in GONE]
        if record["kind"] in ARRIVALS:
            live.append(record["device"])
    return found


def _outcome(event: InjectedEvent) -> Record:
    kind = event.record["kind"]
    delays_s = [float(entry["t_s"]) - event.t_s for entry in event.detections().values()]
    rounds, sent = _recovery(event)
    leaves, joins = kind in GONE, kind in ARRIVALS
    choices = {"before": _before(event), "deleted": _tagged(event, f"deleted:{event.device}")}
    choices["corrected"] = _corrected(event)
    leaver = {name: _mean(event, [event.device], choose) for name, choose in choices.items()}
    leaver["end"] = _mean(event, [event.device], _at_end(event))
    every = {**choices, "end": _at_end(event)}
    survivor = {name: _mean(event, event.survivors, choose) for name, choose in every.items()}
    stages = {name: _chosen(event, choose) for name, choose in every.items()}
    nobody = {name: _mean_control(chosen) for name, chosen in stages.items()}
    shown = [event.device, *event.survivors[:1]]
    return {
        "round": event.round,
        "kind": kind,
        "device": event.device,
        "t_s": event.t_s,
        "survivors": event.survivors,
        "detected_s": {"p50": median(delays_s) if delays_s else None, "max": max(delays_s, default=None)},
        "bytes_to_recover": sent,
        "rounds_to_recover": rounds,
        "leaver_accuracy": leaver if leaves else dict.fromkeys(leaver),
        "survivor_accuracy": survivor,
        "control_accuracy": nobody if leaves else dict.fromkeys(nobody),
        "joiner_accuracy": _joiner(event) if joins else {"end_mean": None, "end_min": None},
        "metrics": event_metrics.metrics(stages, event.device, event.survivors),
        "answers": event_metrics.answers(stages, shown, event_metrics.read_asked(event.run.folder)),
    }


# -- choice of the evaluation of a device ---------------------------------------------------------------
def _own(event: InjectedEvent, device: str, tags: Iterable[str]) -> list[Record]:
    found = (e for tag in tags for e in event.run.tagged(tag) if e["device"] == device)
    return sorted(found, key=lambda e: int(e["round"]))


def _tagged(event: InjectedEvent, tag: str) -> Choose:
    def choose(device: str) -> Record | None:
        return next((e for e in _own(event, device, [tag]) if e["round"] >= event.round), None)

    return choose


def _before(event: InjectedEvent) -> Choose:
    """The snapshot just before the deletion, or, without a deletion, the last one up to the event."""
    exact = _tagged(event, f"before:{event.device}")

    def choose(device: str) -> Record | None:
        earlier = [e for e in _own(event, device, ["round"]) if e["round"] <= event.round]
        return exact(device) or (earlier[-1] if earlier else None)

    return choose


def _corrected(event: InjectedEvent) -> Choose:
    """The end of the correction that this event started: K rounds after the device detected the event.

    One round less is accepted, since the round of a record is read after the decision that it reports.
    """
    detections, length = event.detections(), event.run.scenario.correction.rounds

    def choose(device: str) -> Record | None:
        since = int(detections[device]["round"]) if device in detections else event.round
        found = _own(event, device, ["corrected"])
        return next((e for e in found if e["round"] >= max(since - 1, event.round) + length), None)

    return choose


def _at_end(event: InjectedEvent) -> Choose:
    """The last one: a device whose adapter a late leave has changed is evaluated again."""
    return lambda device: next(reversed(_own(event, device, ["end"])), None)


def _mean(event: InjectedEvent, shards: list[str], choose: Choose) -> float | None:
    """Mean over survivors and shards. Missing values are left out: a crashed survivor has no end."""
    values = [
        e["accuracy"][shard] for e in _chosen(event, choose) for shard in shards if shard in e["accuracy"]
    ]
    return fmean(values) if values else None


def _chosen(event: InjectedEvent, choose: Choose) -> list[Record]:
    return [evaluation for evaluation in map(choose, event.survivors) if evaluation]


def _mean_control(evaluations: Iterable[Record]) -> float | None:
    """Mean accuracy on facts that nobody trained."""
    values = [float(e["control"]) for e in evaluations if e.get("control") is not None]
    return fmean(values) if values else None


def _joiner(event: InjectedEvent) -> Record:
    ends = {e["device"]: e["accuracy"] for e in event.run.tagged("end")}
    values = [accuracy[event.device] for accuracy in ends.values() if event.device in accuracy]
    return {"end_mean": fmean(values) if values else None, "end_min": min(values, default=None)}


# -- recovery --------------------------------------------------------------------------------------------
def _recovery(event: InjectedEvent) -> tuple[int | None, int | None]:
    """Rounds from the event until the survivors have 95 % of their earlier accuracy, and the bytes sent.

    Only rounds count in which every survivor was evaluated, after each of them had detected the event.
    """
    before = _mean(event, event.survivors, _before(event))
    if before is None or not event.survivors:
        return None, None
    detected = [int(entry["round"]) for entry in event.detections().values()]
    first = max([event.round, *detected])
    for round_, evaluations in _complete_rounds(event, first):
        values = [e["accuracy"][shard] for e in evaluations for shard in event.survivors]
        if fmean(values) >= RECOVERED * before:
            return round_ - event.round, _sent_until(event, round_)
    return None, None


def _complete_rounds(event: InjectedEvent, first: int) -> list[tuple[int, list[Record]]]:
    """Rounds from `first` on with an evaluation of each survivor that is evaluated then or later.

    With `eval.devices` = "one" only this one counts: the others are evaluated at the end.
    """
    by_round: dict[int, dict[str, Record]] = {}
    watched = [device for device in event.survivors if event.run.scenario.evaluates(device, "round")]
    for survivor in watched:
        for evaluation in _own(event, survivor, ["round", "corrected", "end"]):
            if evaluation["round"] >= first and evaluation["round"] > event.round:
                by_round.setdefault(int(evaluation["round"]), {})[survivor] = evaluation
    last = {d: max((r for r, found in by_round.items() if d in found), default=-1) for d in watched}
    complete = []
    for round_, found in sorted(by_round.items()):
        if set(found) >= {device for device, seen in last.items() if seen >= round_}:
            complete.append((round_, list(found.values())))
    return complete


def _sent_until(event: InjectedEvent, round_: int) -> int:
    """Bytes that all devices sent in rounds that closed after the injection, up to `round_`."""
    total = 0
    for lines in event.run.metrics.values():
        sent = sent_by_round(lines)
        counted = {int(line["round"]) for line in lines if float(line["t1_s"]) > event.t_s}
        total += sum(sent[r] for r in counted if r <= round_)
    return total
