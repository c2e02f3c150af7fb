"""The progress of a run: a live table in a terminal, or one line every few seconds elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from emulation.analysis.link_totals import total_sent
from emulation.analysis.records import Record, Tail, in_order
from emulation.report.formatting import UNKNOWN, megabytes, percent
from emulation.scenario.schema import Scenario

LINE_EVERY_S = 10.0
REFRESH_PER_S = 4


@dataclass
class Row:
    """The last known state of one device."""

    metrics: Tail
    events: Tail
    state: str = "starting"
    last: Record = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)


STATES = {"started": "meeting", "training": "training", "finished": "finished"}  # by recorded event
LIVE = ("starting", "meeting", "training", "finished")


class Progress:
    """Reads the records in a run's folder. Use it as a context manager and call `update` often."""

    def __init__(self, scenario: Scenario, out: Path, console: Console) -> None:
        self._scenario, self._out, self._console = scenario, out, console
        self._rows: dict[str, Row] = {}
        self._evaluations = Tail(out / "evaluations.jsonl")
        self._seconds = 0.0
        self._printed_at = 0.0
        self._live = (
            Live(console=console, refresh_per_second=REFRESH_PER_S, get_renderable=self.table, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, seconds: float) -> None:
        """Read the new records. `seconds`: time since the start of the run."""
        self._seconds = seconds
        for folder in (self._out / "devices").glob("*"):
            if folder.name not in self._rows:
                row = Row(Tail(folder / "metrics.jsonl"), Tail(folder / "events.jsonl"))
                self._rows[folder.name] = row
        for crashed in [peer for row in self._rows.values() for peer in _read_records(row)]:
            if crashed in self._rows:
                self._rows[crashed].state = "crashed"
        for evaluation in self._evaluations.read():
            if "accuracy" in evaluation and evaluation["device"] in self._rows:
                self._rows[evaluation["device"]].accuracy = evaluation["accuracy"]
        if self._live is None and seconds - self._printed_at >= LINE_EVERY_S:
            self._printed_at = seconds
            self._console.print(self.line(), highlight=False)

    def table(self) -> Table:
        """A table with one row for each device."""
        title = f"{self._scenario.name} · {self._seconds:.0f} s"
        table = Table(title=title, title_justify="left", pad_edge=False)
        for head in ("device", "state", "round", "phase", "loss", "own facts", "all live facts", "sent"):
            table.add_column(head, justify="left" if head in ("device", "state", "phase") else "right")
        for device in in_order(list(self._rows)):
            row = self._rows[device]
            shown = _cells(row, device, self._live_devices())
            table.add_row(device, row.state, *shown, style="dim" if row.state not in LIVE else "")
        return table

    def line(self) -> str:
        """The whole run in one line."""
        live = self._live_devices()
        rounds = [int(self._rows[d].last["round"]) + 1 for d in live if self._rows[d].last]
        known = [a for d in live for s, a in self._rows[d].accuracy.items() if s in live]
        losses = [float(self._rows[d].last["loss"]) for d in live if self._rows[d].last]
        sent = sum(total_sent(row.last.get("links", {})) for row in self._rows.values())
        parts = [f"{self._seconds:5.0f} s", f"round {min(rounds, default=0)}/{self._scenario.round.count}"]
        parts += [f"devices {', '.join(live) or 'none'}", f"loss {fmean(losses):.3f}" if losses else "loss –"]
        parts += [f"accuracy {percent(fmean(known))}" if known else "accuracy –", f"sent {megabytes(sent)}"]
        return " · ".join(parts)

    def _live_devices(self) -> list[str]:
        return in_order([device for device, row in self._rows.items() if row.state in LIVE])


def _read_records(row: Row) -> list[str]:
    """Read the new records of a device; returns the peers that it found to have crashed.

    A crashed device cannot record its crash itself.
    """
    crashed = []
    for event in row.events.read():
        name = event["event"]
        if name == "peer_gone" and event.get("kind") == "crash":
            crashed.append(str(event["peer"]))
        elif name == "leaving":
            row.state = "left" if event.get("kind") == "leave" else "retired"
        elif name in STATES and (name == "started" or row.state in LIVE):
            row.state = STATES[name]
        if name == "started":
            row.accuracy = {}
    for line in row.metrics.read():
        row.last = line
        row.state = "training" if row.state == "crashed" else row.state  # it was only unreachable
    return crashed


def _cells(row: Row, device: str, live: list[str]) -> list[str]:
    if not row.last:
        return [UNKNOWN] * 6
    known = [a for shard, a in row.accuracy.items() if shard in live]
    return [
        str(row.last["round"]),
        str(row.last["phase"]),
        f"{float(row.last['loss']):.3f}",
        percent(row.accuracy.get(device)),
        percent(fmean(known) if known else None),
        megabytes(total_sent(row.last["links"])),
    ]
