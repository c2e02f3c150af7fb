"""Many real devices on this machine, as `unweft run` starts them, and their records while they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console

from emulation.analysis.records import Record, Tail
from emulation.bench.harness.processes import process_cpu_s
from emulation.launch import local
from emulation.launch.local import LocalBackend
from emulation.launch.run_state import RunState
from emulation.scenario.schema import Scenario

POLL_S = 0.5


@dataclass(frozen=True)
class ClosedRound:
    """The figures of one closed round of a device. Bytes of links are sums since the start of the device.

    block_bytes: sent of each block in this round, with headers. withheld: parts that the budget held back.
    """

    number: int
    end_s: float
    spent_bytes: int
    granted_bytes: int
    control_bytes: int
    sent_bytes: int
    transfer_bytes: int = 0
    block_bytes: Mapping[str, int] = field(default_factory=dict)
    withheld: int = 0

    @classmethod
    def of(cls, line: Record) -> ClosedRound:
        """Read a line of metrics.jsonl."""
        links = line["links"].values()

        def of_cause(cause: str) -> int:
            return sum(int(link["bytes_by_cause"].get(cause, 0)) for link in links)

        return cls(
            int(line["round"]),
            float(line["t1_s"]),
            int(line["spent_bytes"]),
            int(line["granted_bytes"]),
            of_cause("control"),
            sum(int(link["sent_bytes"]) for link in links),
            of_cause("transfer"),
            line.get("block_bytes", {}),
            int(line.get("withheld", 0)),
        )


class Memory(NamedTuple):
    """In bytes. uss: pages of this process alone. pss: with its share of the pages that others have too."""

    uss: int
    pss: int


class Crowd:
    """The started devices of a scenario with a real clock."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.started: list[str] = []
        self.events: dict[str, list[Record]] = {}
        self.rounds: dict[str, list[ClosedRound]] = {}
        self._tails: dict[str, tuple[Tail, Tail]] = {}

    def start(self, *devices: str) -> None:
        """Start devices of the cohort. None trains before all of the cohort are there."""
        for device in devices:
            self._backend.start_together(device)
            folder = self._backend.state.out / "devices" / device
            self._tails[device] = Tail(folder / "events.jsonl"), Tail(folder / "metrics.jsonl")
            self.events[device], self.rounds[device] = [], []
            self.started.append(device)

    def wait(self, done: Callable[[], bool], until: float) -> bool:
        """Read the records until `done`, or to a monotonic time. Raises RuntimeError if a device ends."""
        while True:
            self._read()
            if done():
                return True
            for device, status in self._backend.running().items():
                if not status.running:
                    raise RuntimeError(f"{device} ended: {status.failure}")
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)

    def _read(self) -> None:
        for device, (events, metrics) in self._tails.items():
            self.events[device] += events.read()
            self.rounds[device] += map(ClosedRound.of, metrics.read())

    def knew_all_s(self, device: str) -> float | None:
        """When a device knew all the others that were started; None: it does not yet."""
        joined = {e["peer"]: float(e["t_s"]) for e in self.events[device] if e["event"] == "peer_joined"}
        return max(joined.values(), default=0.0) if len(joined) == len(self.started) - 1 else None

    def all_known(self) -> bool:
        """Whether all devices that were started know each other."""
        return all(self.knew_all_s(device) is not None for device in self.started)

    def count(self, event: str, **fields: str) -> int:
        """The number of records of an event with these fields, over all devices."""
        wanted = {"event": event, **fields}
        lines = (line for events in self.events.values() for line in events)
        return sum(all(line.get(key) == value for key, value in wanted.items()) for line in lines)

    def cpu_s(self) -> Mapping[str, float]:
        """The CPU seconds that each device has used so far."""
        return self._ask(process_cpu_s)

    def memory(self) -> dict[str, Memory]:
        """The memory of each device that was started. The pages of the forkserver are shared by all."""
        found = self._ask(psutil.Process.memory_full_info)
        return {device: Memory(int(info.uss), int(info.pss)) for device, info in found.items()}

    def _ask(self, question: Callable[[psutil.Process], Any]) -> dict[str, Any]:
        """An answer of each process. Raises RuntimeError if one has ended."""
        lives = self._backend.lives
        try:
            return {device: question(psutil.Process(lives[device][-1].pid)) for device in self.started}
        except psutil.Error as error:
            raise RuntimeError(f"a device ended: {error}") from None


@contextmanager
def crowd(scenario: Scenario, folder: Path) -> Iterator[Crowd]:
    """The devices of a scenario. All processes are killed at the end of the block."""
    state = RunState(scenario=scenario, out=folder / "crowd")
    backend = local.prepare(state, Console(quiet=True))
    try:
        backend.forkserver.start(_wait_for_imports, name="first").join()
        state.epoch_ns = time.monotonic_ns()  # the imports of the forkserver are no part of a start
        yield Crowd(backend)
    finally:
        backend.end(succeeded=False)


def _wait_for_imports(lifeline: Connection) -> None:
    """The first child of the forkserver runs once its imports are done."""
