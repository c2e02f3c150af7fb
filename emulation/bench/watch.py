"""`unweft bench watch`: the cost of the server of the watch page, with the page open and closed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

import psutil

from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.processes import process_cpu_s
from emulation.bench.harness.whole_run import RUN
from emulation.watch.optional import load_serving

START_S, END_S = 300.0, 120.0  # longest waits: until every device has closed a round, and for the run's end
LOOK_S = 0.5  # between two looks at the memory of the server
INTERRUPTED = 130  # exit status of a run that SIGINT has ended
MOST_CORE_PERCENT, MOST_MB = 10.0, 150.0
SCENARIO = """
[devices]
count = {count}
[data]
persons = 1
batch = 4
[adapter]
rank = 2
max_devices = 32
[topology]
kind = "ring-chords"
chords = 2
[round]
count = 1_000_000 # the benchmark ends the run
local_steps = 1
[eval]
every = 10
"""


@dataclass(frozen=True)
class Phase:
    """A time with the page open, or closed. rss_bytes: the largest resident set of the server."""

    seconds: float
    cpu_s: float
    rss_bytes: int
    rounds: int  # closed in this time, over all devices

    @property
    def core_percent(self) -> float:
        """Share of one core that the server has used."""
        return 100 * self.cpu_s / self.seconds

    @property
    def rounds_per_s(self) -> float:
        """Rounds that the devices have closed in a second, all together."""
        return self.rounds / self.seconds


class Page:
    """A client of the stream, as an open page is. It reads in a thread and counts."""

    def __init__(self, address: str) -> None:
        self.updates, self.bytes = 0, 0
        self._closing = threading.Event()
        self._stream: HTTPResponse = urllib.request.urlopen(f"{address}events", timeout=START_S)
        self._thread = threading.Thread(target=self._read, name="page", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                self.updates += line.startswith(b"data: ")
                self.bytes += len(line)
                if self._closing.is_set():
                    return

    @property
    def reads(self) -> bool:
        """Whether the stream goes on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Close the connection. The thread ends with the next line of the stream."""
        self._closing.set()
        self._thread.join(START_S)


def run(devices: Sequence[int] = (16,), watched_s: float = 300.0, closed_s: float = 60.0) -> Findings:
    """One run of each size: the page is closed, open for `watched_s`, and closed again.

    Raises RuntimeError if the run or the server fails, or the stream ends early.
    """
    load_serving()  # names the packages that are missing before the run starts
    findings = Findings("The server of the watch page", "unweft bench watch")
    for count in devices:
        with tempfile.TemporaryDirectory() as folder, _running(Path(folder), count) as out:
            findings.measures += _measures(f"{count} devices", out, watched_s, closed_s)
    findings.notes.append(
        f"The page is a client that reads the stream for {watched_s:g} s and draws nothing. It is closed for "
        f"{closed_s:g} s before that and for {closed_s:g} s after it."
    )
    return findings


def _measures(group: str, out: Path, watched_s: float, closed_s: float) -> list[Measure]:
    serving = load_serving()
    with serving.beside(out) as address:
        server = _server(serving.__name__)
        urllib.request.urlopen(address, timeout=START_S).close()  # its imports are done then
        before = _phase(server, out, closed_s)
        page = Page(address)
        watched = _phase(server, out, watched_s)
        if not page.reads:
            raise RuntimeError("the stream ended while the page was open")
        page.close()
        after = _phase(server, out, closed_s)
    closed = (before, after)
    rounds = tuple(phase.rounds_per_s for phase in closed)
    open_ = "rounds of all devices, page open"
    return [
        Measure(group, "updates of the page", "1/s", (page.updates / watched_s,)),
        Measure(group, "sent to the page", "kB/s", (page.bytes / watched_s / 1e3,)),
        Measure(group, "server, page open", "% of a core", (watched.core_percent,), most=MOST_CORE_PERCENT),
        Measure(
            group,
            "server, page closed",
            "% of a core",
            tuple(phase.core_percent for phase in closed),
            most=1.0,
        ),
        Measure(group, "memory of the server", "MB", (after.rss_bytes / 1e6,), most=MOST_MB),
        Measure(group, open_, "1/s", (watched.rounds_per_s,) * 2),
        Measure(group, "rounds of all devices, page closed", "1/s", rounds, open_),
    ]


def _server(module: str) -> psutil.Process:
    """The process of `serving.beside`, which runs a module."""
    return next(child for child in psutil.Process().children() if module in child.cmdline())


def _phase(server: psutil.Process, out: Path, seconds: float) -> Phase:
    """Measure for `seconds`. Raises RuntimeError if the server ends."""
    rss, rounds, began = 0, _rounds(out), time.monotonic()
    try:
        cpu = process_cpu_s(server)
        while (passed := time.monotonic() - began) < seconds:
            rss = max(rss, server.memory_info().rss)
            time.sleep(min(LOOK_S, seconds - passed))
        return Phase(time.monotonic() - began, process_cpu_s(server) - cpu, rss, _rounds(out) - rounds)
    except psutil.Error as error:
        raise RuntimeError(f"the server ended: {error}") from None


def _rounds(out: Path) -> int:
    """The rounds that the devices have closed, all together."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("devices/*/metrics.jsonl"))


@contextmanager
def _running(folder: Path, count: int) -> Iterator[Path]:
    """The folder of a run that goes on, once every device has closed a round. The run ends with the block.

    Raises RuntimeError if the run fails.
    """
    file, out = folder / "watched.toml", folder / "watched"
    file.write_text(SCENARIO.format(count=count), encoding="utf-8")
    command = [sys.executable, "-c", RUN, "run", str(file), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            _wait_for_rounds(out, count, launcher)
            yield out
            if launcher.poll() is not None:
                raise RuntimeError(f"the run failed: {launcher.communicate()[1].strip()}")
        finally:
            _end(launcher)
    if launcher.returncode != INTERRUPTED:
        raise RuntimeError(f"the run ended with status {launcher.returncode}")


def _wait_for_rounds(out: Path, count: int, launcher: subprocess.Popen[str]) -> None:
    until = time.monotonic() + START_S
    while sum(path.stat().st_size > 0 for path in out.glob("devices/*/metrics.jsonl")) < count:
        if launcher.poll() is not None:
            raise RuntimeError(f"the run failed: {launcher.communicate()[1].strip()}")
        if time.monotonic() > until:
            raise RuntimeError(f"not every device has closed a round in {START_S:g} s")
        time.sleep(LOOK_S)


def _end(launcher: subprocess.Popen[str]) -> None:
    """Interrupt the run as Ctrl-C does, and kill it if that takes too long."""
    launcher.send_signal(signal.SIGINT)
    try:
        launcher.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.communicate()
