"""The progress of a run: a live table in a terminal, or lines elsewhere; and each event when it happens."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from emulation.analysis.records import in_order
from emulation.report.formatting import UNKNOWN, duration, megabytes, percent, plural
from emulation.scenario.schema import Scenario
from emulation.watch.feed import Announcer
from emulation.watch.live_device import LiveDevice
from emulation.watch.live_run import Accuracy, LiveRun
from peers.errors import InputError

LINE_EVERY_S = 10.0
REFRESH_S = 0.25
MANY = 8  # more devices than this are counted, not listed
HEADS = ("device", "state", "round", "phase", "loss", "own facts", "all live facts", "as of round", "sent")
LEFT_ALIGNED = ("device", "state", "phase")


class Progress:
    """Reads the records in a run's folder. Use it as a context manager and call `update` often.

    A line is never wrapped, so that one entry of piped output is one line. An accuracy is shown with the
    round after which it was measured. `goes_on`: the folder has records of earlier processes of the
    launcher. Their events are not announced again.
    """

    def __init__(self, scenario: Scenario, out: Path, console: Console, goes_on: bool = False) -> None:
        self._scenario, self._console = scenario, console
        self._run = LiveRun(out, keep_history=False)
        self._announcer = Announcer(self._run.feed)
        self._seconds = 0.0
        if goes_on:
            with suppress(InputError, OSError):
                self._run.read()
            list(self._announcer.due(0.0, last=True))
        self._shown_at = 0.0  # in seconds since the start of the run
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._announce(last=True)
        if self._live is not None:
            self._live.stop()

    def update(self, seconds: float) -> None:
        """Read the new records. `seconds`: time since the start of the run."""
        self._seconds = seconds
        with suppress(InputError, OSError):  # what is shown never ends what is computed
            self._run.read()
        self._announce()
        if seconds - self._shown_at < (LINE_EVERY_S if self._live is None else REFRESH_S):
            return
        self._shown_at = seconds
        if self._live is None:
            self._say(self.line())
        else:
            self._live.update(self.table(), refresh=True)

    def _announce(self, last: bool = False) -> None:
        for entry in self._announcer.due(self._seconds, last):
            self._say(f"{entry.t_s:5.0f} s · {entry.sentence()}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def table(self) -> Table:
        """A table with one row for each device."""
        lag = self._run.evaluator_lag().text()
        table = Table(
            title=" · ".join([self._scenario.name, f"{self._seconds:.0f} s", *self._rounds()]),
            title_justify="left",
            caption=f"the evaluator lags: {lag}" if lag else None,
            caption_justify="left",
            pad_edge=False,
        )
        for head in HEADS:
            table.add_column(head, justify="left" if head in LEFT_ALIGNED else "right")
        live = self._run.live()
        for device in in_order(list(self._run.devices)):
            about = self._run.devices[device]
            shown = _cells(about, self._run.latest.get(device), live)
            table.add_row(device, about.state, *shown, style="" if about.alive else "dim")
        return table

    def line(self) -> str:
        """The whole run in one line."""
        live = [self._run.devices[device] for device in self._run.live()]
        losses = [device.loss for device in live if device.loss is not None]
        sent = sum(device.sent_bytes() for device in self._run.devices.values())
        parts = [f"{self._seconds:5.0f} s", *self._rounds(), _listed([device.id for device in live])]
        parts += [f"loss {fmean(losses):.3f}" if losses else f"loss {UNKNOWN}", self._accuracy()]
        lag = self._run.evaluator_lag().text()
        return " · ".join([*parts, f"sent {megabytes(sent)}", *([lag] if lag else [])])

    def _rounds(self) -> list[str]:
        left_s = self._run.left_s()
        done = f"{self._run.rounds_done()} of {plural(self._scenario.round.count, 'round')} done"
        return [done, *([] if left_s is None else [f"about {duration(left_s)} left"])]

    def _accuracy(self) -> str:
        """The mean over live devices and their data, with the rounds to which it belongs."""
        live = self._run.live()
        found = [self._run.latest[device] for device in live if device in self._run.latest]
        known = [share for each in found for shard, share in each.by_shard.items() if shard in live]
        if not known:
            return f"accuracy {UNKNOWN}"
        first, last = min(each.round for each in found), max(each.round for each in found)
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
        return f"accuracy {percent(fmean(known))} after {rounds}"


def _listed(devices: list[str]) -> str:
    if len(devices) > MANY:
        return f"{len(devices)} devices"
    return f"devices {', '.join(devices) or 'none'}"


def _cells(device: LiveDevice, evaluated: Accuracy | None, live: list[str]) -> list[str]:
    """The cells after the state. `evaluated`: the last evaluation, which may be of an earlier round."""
    if device.round is None:
        return [UNKNOWN] * (len(HEADS) - 2)
    shares = evaluated.by_shard if evaluated is not None else {}
    known = [share for shard, share in shares.items() if shard in live]
    return [
        str(device.round),
        device.phase,
        UNKNOWN if device.loss is None else f"{device.loss:.3f}",
        percent(shares.get(device.id)),
        percent(fmean(known) if known else None),
        UNKNOWN if evaluated is None else str(evaluated.round),
        megabytes(device.sent_bytes()),
    ]
