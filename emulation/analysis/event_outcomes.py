"""What each membership event did: who noticed when, what was forgotten, what it cost to recover."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, median

from emulation.analysis.link_totals import sent_by_round
from emulation.analysis.records import Record, RunRecords
from emulation.scenario.events import ARRIVALS, GONE

RECOVERED = 0.95  # share of the accuracy before the event
Choose = Callable[[str], Record | None]  # the evaluation of a device that counts


@dataclass
class Event:
    """One injected event and those who lived through it."""

    run: RunRecords
    record: Record
    survivors: list[str]  # live before and not its device

    @property
    def round(self) -> int:
        return int(self.record["round"])

    @property
    def t_s(self) -> float:
        return float(self.record["t_s"])

    @property
    def device(self) -> str:
        return str(self.record["device"])

    def noticed(self) -> dict[str, Record]:
        """By survivor: its first record of the event after it happened."""
        name = "peer_joined" if self.record["kind"] in ARRIVALS else "peer_gone"
        seen: dict[str, Record] = {}
        for survivor in self.survivors:
            for entry in self.run.events.get(survivor, []):
                if entry["event"] == name and entry.get("peer") == self.device and entry["t_s"] >= self.t_s:
                    seen.setdefault(survivor, entry)
        return seen


def build(run: RunRecords) -> list[Record]:
    """The `events` of summary.json, in the order of their injection."""
    return [_entry(event) for event in events(run)]


def events(run: RunRecords) -> list[Event]:
    """What was injected, in order, each with its survivors."""
    live = list(run.scenario.initial_devices)
    found = []
    for record in run.injected:
        found.append(Event(run, record, [d for d in live if d != record["device"]]))
        live = [d for d in live if d != record["device"] or record["kind"] not in GONE]
        if record["kind"] in ARRIVALS:
            live.append(record["device"])
    return found


def _entry(event: Event) -> Record:
    kind = event.record["kind"]
    noticed = [float(entry["t_s"]) - event.t_s for entry in event.noticed().values()]
    rounds, sent = _recovery(event)
    leaves, joins = kind in GONE, kind in ARRIVALS
    choices = {"before": _before(event), "deleted": _tagged(event, f"deleted:{event.device}")}
    choices["corrected"] = _corrected(event)
    leaver = {name: _mean(event, [event.device], choose) for name, choose in choices.items()}
    leaver["end"] = _mean(event, [event.device], _at_end(event))
    survivor = {name: _mean(event, event.survivors, choose) for name, choose in choices.items()}
    return {
        "round": event.round,
        "kind": kind,
        "device": event.device,
        "t_s": event.t_s,
        "survivors": event.survivors,
        "detected_s": {"p50": median(noticed) if noticed else None, "max": max(noticed, default=None)},
        "bytes_to_recover": sent,
        "rounds_to_recover": rounds,
        "leaver_accuracy": leaver if leaves else dict.fromkeys(leaver),
        "survivor_accuracy": survivor,
        "joiner_accuracy": _joiner(event) if joins else {"end_mean": None, "end_min": None},
    }


# -- which evaluation of a device counts ---------------------------------------------------------------
def _own(event: Event, device: str, tags: Iterable[str]) -> list[Record]:
    found = (e for tag in tags for e in event.run.tagged(tag) if e["device"] == device)
    return sorted(found, key=lambda e: int(e["round"]))


def _tagged(event: Event, tag: str) -> Choose:
    def choose(device: str) -> Record | None:
        return next((e for e in _own(event, device, [tag]) if e["round"] >= event.round), None)

    return choose


def _before(event: Event) -> Choose:
    """The snapshot just before the deletion; where nothing is deleted, the last one up to the event."""
    exact = _tagged(event, f"before:{event.device}")

    def choose(device: str) -> Record | None:
        earlier = [e for e in _own(event, device, ["round"]) if e["round"] <= event.round]
        return exact(device) or (earlier[-1] if earlier else None)

    return choose


def _corrected(event: Event) -> Choose:
    """The end of the correction that this event started: K rounds after the device noticed it.

    One round less is let pass: a record's round is read after the decision it reports.
    """
    noticed, length = event.noticed(), event.run.scenario.correction.rounds

    def choose(device: str) -> Record | None:
        since = int(noticed[device]["round"]) if device in noticed else event.round
        found = _own(event, device, ["corrected"])
        return next((e for e in found if e["round"] >= max(since - 1, event.round) + length), None)

    return choose


def _at_end(event: Event) -> Choose:
    return lambda device: next(iter(_own(event, device, ["end"])), None)


def _mean(event: Event, shards: list[str], choose: Choose) -> float | None:
    """Mean over survivors and shards. Of what is known: a survivor that died later has no end."""
    chosen = [evaluation for evaluation in map(choose, event.survivors) if evaluation]
    values = [e["accuracy"][shard] for e in chosen for shard in shards if shard in e["accuracy"]]
    return fmean(values) if values else None


def _joiner(event: Event) -> Record:
    ends = {e["device"]: e["accuracy"] for e in event.run.tagged("end")}
    values = [accuracy[event.device] for accuracy in ends.values() if event.device in accuracy]
    return {"end_mean": fmean(values) if values else None, "end_min": min(values, default=None)}


# -- recovery --------------------------------------------------------------------------------------------
def _recovery(event: Event) -> tuple[int | None, int | None]:
    """Rounds from the event, and bytes that all devices sent in them, until survivors are back at 95 %.

    Only rounds in which every survivor was evaluated count, and only after each of them had noticed.
    """
    before = _mean(event, event.survivors, _before(event))
    if before is None or not event.survivors:
        return None, None
    noticed = event.noticed()
    first = max([event.round, *(int(entry["round"]) for entry in noticed.values())])
    for round_, evaluations in _after(event, first):
        values = [e["accuracy"][shard] for e in evaluations for shard in event.survivors]
        if fmean(values) >= RECOVERED * before:
            return round_ - event.round, _sent_until(event, round_)
    return None, None


def _after(event: Event, first: int) -> list[tuple[int, list[Record]]]:
    by_round: dict[int, dict[str, Record]] = {}
    for survivor in event.survivors:
        for evaluation in _own(event, survivor, ["round", "corrected", "end"]):
            if evaluation["round"] >= first and evaluation["round"] > event.round:
                by_round.setdefault(int(evaluation["round"]), {})[survivor] = evaluation
    last = {d: max((r for r, found in by_round.items() if d in found), default=-1) for d in event.survivors}
    complete = []
    for round_, found in sorted(by_round.items()):
        if set(found) >= {device for device, seen in last.items() if seen >= round_}:
            complete.append((round_, list(found.values())))
    return complete


def _sent_until(event: Event, round_: int) -> int:
    """Bytes of all devices in the rounds that closed after the injection, up to `round_`."""
    total = 0
    for device, lines in event.run.metrics.items():
        sent = sent_by_round(lines, event.run.events[device])
        counted = {int(line["round"]) for line in lines if float(line["t1_s"]) > event.t_s}
        total += sum(sent[r] for r in counted if r <= round_)
    return total
