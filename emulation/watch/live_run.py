"""The state of a run, rebuilt from its files. It reads only; `read` continues where it stopped.

A reader that starts late, or again, comes to the same state: the files hold everything (docs/records.md).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from emulation.analysis.records import INJECTED, RESUMED, Record, Tail, in_order, read_object
from emulation.scenario.events import ARRIVALS
from emulation.scenario.loading import read as read_scenario
from emulation.scenario.schema import Scenario
from emulation.testbed import churn_log, epoch
from emulation.watch import live_device as states
from emulation.watch.feed import Feed
from emulation.watch.live_device import LiveDevice
from emulation.watch.spans import Span, of_round

BY_DEPARTURE = {"leave": states.LEFT, "retire": states.RETIRED, "crash": states.CRASHED}


# A damaged record is left out, since what is shown must never end what is computed.
DAMAGED = (KeyError, TypeError, ValueError, AttributeError)
Take = Callable[[Record], None]
Timed = tuple[float, Take, Record]  # seconds of the run's clock; what takes the record in


class Accuracy(NamedTuple):
    """One evaluation of a device: accuracy by shard after `round`."""

    device: str
    round: int
    tag: str  # of the snapshot: round | before:… | deleted:… | corrected | end
    by_shard: dict[str, float]


class EvaluatorLag(NamedTuple):
    """How far the evaluator is. Rounds are the newest ones."""

    evaluated: int | None
    devices_at: int | None
    waiting: int  # snapshots that are not evaluated yet
    usual: int = 0  # as many may wait without being worth a word

    def text(self) -> str:
        """In words; empty if the evaluator keeps up."""
        if self.waiting <= self.usual:
            return ""
        at = "the first round" if self.evaluated is None else f"round {self.evaluated}"
        waits = "1 snapshot waits" if self.waiting == 1 else f"{self.waiting} snapshots wait"
        return f"evaluating {at}, devices at {self.devices_at or 0}; {waits}"


class LiveRun:
    """Follows the folder of a run. Call `read` often; it returns whether there was anything new.

    The new records of all files are taken in by time, so that a late reader sees the same order of events.
    `keep_history`: whether `spans` and `evaluations` are kept; they grow with the run.
    """

    def __init__(self, folder: Path, keep_history: bool = True) -> None:
        self.folder, self._keep_history = folder, keep_history
        self.scenario: Scenario | None = None
        self.devices: dict[str, LiveDevice] = {}
        self.feed = Feed()
        self.spans: list[Span] = []
        self.evaluations: list[Accuracy] = []
        self.latest: dict[str, Accuracy] = {}  # by device
        self.decisions: list[Record] = []  # one for each network-wide decision
        self.newest_s = 0.0  # time of the newest record, in seconds of the run's clock
        self.read_at = 0.0  # when the newest record was read: wall-clock seconds
        self.ended = False
        self._tails: dict[Path, Tail] = {}
        self._stalls: dict[str, tuple[float, int]] = {}
        self._decided: set[object] = set()
        self._arrivals = Counter[str]()  # by device, as the launcher injected them
        self._resumed = Counter[str]()  # by device: how often the run went on with it after an interruption
        self._restarts: set[str] = set()  # devices whose next process goes on with the run
        self._goes_on: set[str] = set()  # of these, the ones that have not taken their slots again

    # -- reading -------------------------------------------------------------------------------------
    def read(self) -> bool:
        """Read all new records. Raises InputError if the scenario of the run is damaged."""
        if not self._find_scenario():
            return False
        before = self.ended
        new = self._timed_records()
        for _, take, record in sorted(new, key=lambda found: found[0]):
            _take(take, record)
        for line in (evaluations := list(self._tail(self.folder / "evaluations.jsonl").read())):
            _take(self._take_evaluation, line)
        self._read_end()
        if new or evaluations:
            self.read_at = time.time()
        return bool(new or evaluations) or self.ended != before

    def _timed_records(self) -> list[Timed]:
        """The new records of all files but the evaluations."""
        new = [
            *self._timed(self.folder / INJECTED, _time("t_s"), self._take_injected),
            *self._timed(self.folder / churn_log.FILE, self._churned_s, self._take_churned),
        ]
        for device in self._find_devices():
            own = self.folder / "devices" / device.id
            new += self._timed(own / "events.jsonl", _time("t_s"), partial(self._take_event, device))
            new += self._timed(own / "metrics.jsonl", _time("t1_s"), partial(self._take_round, device))
        return new

    def _timed(self, path: Path, time_s: Callable[[Record], float], take: Take) -> Iterator[Timed]:
        for record in self._tail(path).read():
            with suppress(*DAMAGED):
                yield time_s(record), take, record

    def _tail(self, path: Path) -> Tail:
        if path not in self._tails:
            self._tails[path] = Tail(path)
        return self._tails[path]

    def _churned_s(self, event: Record) -> float:
        return churn_log.seconds(event, epoch.load(self.folder))

    def _find_scenario(self) -> bool:
        path = self.folder / "scenario.toml"
        if self.scenario is None and path.is_file():
            self.scenario = read_scenario(path)
            for device in self.scenario.initial_devices:
                self.devices[device] = LiveDevice(device, initial=True)
        return self.scenario is not None

    def _find_devices(self) -> list[LiveDevice]:
        for folder in (self.folder / "devices").glob("*"):
            # In virtual time a process of a device that joins later exists from the beginning.
            if folder.name not in self.devices and (folder / "events.jsonl").exists():
                self.devices[folder.name] = LiveDevice(folder.name, initial=False)
        return list(self.devices.values())

    def _take_injected(self, event: Record) -> None:
        """An event of the launcher. The launcher numbers no lives: each arrival begins the next one."""
        kind, device = str(event["kind"]), str(event["device"])
        if kind in ARRIVALS:
            self._arrivals[device] += 1
        elif kind == RESUMED:
            self._restarts = {*device.split(", ")}
            self._resumed.update(self._restarts)
        initial = self.scenario is not None and device in self.scenario.initial_devices
        life = max(0, self._arrivals[device] - (not initial)) + self._resumed[device]
        self._inject(kind, device, int(event["round"]), float(event["t_s"]), life)

    def _take_churned(self, event: Record) -> None:
        """An event of `unweft churn`. The devices record their arrivals themselves."""
        device = self.devices.get(str(event["device"]))
        if event["kind"] not in ARRIVALS:
            life = device.life if device is not None else 0
            at_s = self._churned_s(event)
            self._inject(str(event["kind"]), str(event["device"]), self.at_round() or 0, at_s, life)

    def _read_end(self) -> None:
        """A launcher writes run.json when all devices have ended. Older runs have their events only there."""
        path = self.folder / "run.json"
        if self.ended or not path.exists():
            self.ended = path.exists()  # an interrupted run goes on without it
            return
        self.ended = True
        if not (self.folder / INJECTED).exists() and self.scenario is not None:
            for event in read_object(path).get("events", ()) if self.scenario.clock == "real" else ():
                life = int(event.get("life", 0))
                self._inject(
                    event["kind"], str(event["device"]), int(event["round"]), float(event["t_s"]), life
                )

    def _inject(self, kind: str, device: str, round_: int, t_s: float, life: int) -> None:
        """An event of the scenario or of a user, as the launcher or the device recorded it."""
        about = self.devices.get(device)
        self.feed.inject(kind, device, round_, t_s, life)
        self._see(t_s)
        if about is None:
            return
        if kind in ("crash", "stall") and t_s >= about.seen_s:
            about.enter(states.CRASHED if kind == "crash" else states.STALLED, t_s)
        if kind == "stall":
            self._stalls[device] = (t_s, round_)
        elif kind == "resume":
            self._end_stall(about, t_s)

    def _end_stall(self, device: LiveDevice, t_s: float) -> None:
        start = self._stalls.pop(device.id, None)
        if start is not None:
            self.spans.append(Span(device.id, "stalled", start[0], t_s, start[1]))

    def _take_event(self, device: LiveDevice, event: Record) -> None:
        name, t_s, round_ = str(event["event"]), float(event["t_s"]), int(event["round"])
        if name == "never_due":
            return
        self._see(t_s)
        self._change_state(device, name, event, t_s)
        if name == "started" and device.id in self._restarts:
            self._restarts.remove(device.id)
            self._goes_on.add(device.id)
        elif name == "started" and (device.life or not device.initial):
            kind = "return" if device.life else "join"
            self._inject(kind, device.id, round_, t_s, device.life)
        elif name == "leaving" and str(event.get("kind")) in BY_DEPARTURE:
            self._inject(str(event["kind"]), device.id, round_, t_s, device.life)
        elif name == "scripted" and event["kind"] not in (*ARRIVALS, "leave", "retire"):
            subject = device.id if event["kind"] not in ("partition", "heal") else ""
            self._inject(str(event["kind"]), subject, int(event["at_round"]), t_s, int(event.get("life", 0)))
        elif name == "decision" and (key := (event.get("epoch"), event.get("digest"))) not in self._decided:
            self._decided.add(key)
            self.decisions.append(event)
        if name == "slot" and device.id in self._goes_on:
            self._goes_on.remove(device.id)  # its block is not new
        else:
            self.feed.record(device.id, event)

    def _change_state(self, device: LiveDevice, name: str, event: Record, t_s: float) -> None:
        """The consequences of a record for the device that wrote it, and for the device that it is about."""
        about = self.devices.get(str(event.get("peer", "")))
        if name == "started":
            device.begin_life(int(event.get("life", device.life + bool(device.seen_s))), t_s)
            return
        device.see(t_s)
        match name:
            case "slot":
                device.slot = int(event["slot"])
            case "training":
                device.enter(states.TRAINING, t_s)
            case "leaving":
                device.enter(BY_DEPARTURE.get(str(event.get("kind")), states.LEFT), t_s)
            case "failed":
                device.enter(states.FAILED, t_s)
            case "finished":
                device.count_links(int(event.get("life", device.life)), event.get("links", {}))
                if device.alive:
                    device.enter(states.FINISHED, t_s)
            case "suspected" if about is not None:
                about.suspect(device.id, t_s)
            case "peer_gone" if about is not None and event.get("kind") == "crash":
                if about.alive and t_s >= about.seen_s:
                    about.enter(states.CRASHED, t_s)
            case _:
                pass

    def _take_round(self, device: LiveDevice, line: Record) -> None:
        real_time = self.scenario is not None and self.scenario.clock == "real"
        self._see(float(line["t1_s"]))
        device.close_round(line)
        device.see(float(line["t1_s"]))
        if self._keep_history:
            self.spans += of_round(device.id, line, real_time)

    def _take_evaluation(self, line: Record) -> None:
        if "accuracy" not in line:
            return  # a consensus error
        found = Accuracy(str(line["device"]), int(line["round"]), str(line["tag"]), line["accuracy"])
        if self._keep_history:
            self.evaluations.append(found)
        if found.tag.startswith("before:"):
            return  # a state that the deletion has ended
        if found.device not in self.latest or found.round >= self.latest[found.device].round:
            self.latest[found.device] = found

    def _see(self, t_s: float) -> None:
        self.newest_s = max(self.newest_s, t_s)

    # -- questions -----------------------------------------------------------------------------------
    def live(self) -> list[str]:
        """Ids of the devices that take part, in natural order."""
        return in_order([device.id for device in self.devices.values() if device.alive])

    def at_round(self) -> int | None:
        """The newest round that a live device has closed."""
        rounds = [d.round for d in self.devices.values() if d.alive and d.round is not None]
        return max(rounds, default=None)

    def rounds_done(self) -> int:
        """The number of rounds that every live device has closed; joiners count from their first round on."""
        rounds = [d.round + 1 for d in self.devices.values() if d.alive and d.round is not None]
        return min(rounds, default=0)

    def left_s(self) -> float | None:
        """An estimate of the seconds until the last round ends, from the pace of the slowest live device.

        None before the second round, and after the last one.
        """
        if self.scenario is None or self.ended:
            return None
        waits = [
            (self.scenario.round.count - 1 - device.round) * pace
            for device in self.devices.values()
            if device.alive and device.round is not None and (pace := device.round_s()) is not None
        ]
        return max(waits, default=0.0) or None

    def evaluator_lag(self) -> EvaluatorLag:
        """How far the evaluator is behind the devices. One snapshot of each live device may wait."""
        waiting = sum(1 for _ in (self.folder / "devices").glob("*/snapshots/*.safetensors"))
        evaluated = max((found.round for found in self.latest.values()), default=None)
        return EvaluatorLag(evaluated, self.at_round(), 0 if self.ended else waiting, len(self.live()))


def _time(key: str) -> Callable[[Record], float]:
    return lambda record: float(record[key])


def _take(take: Take, record: Record) -> None:
    with suppress(*DAMAGED):
        take(record)
