"""`unweft bench scale`: what a device costs among more and more devices, and how each figure grows.

Real devices: all are started but one. They settle, so they train nothing, and the CPU time of an idle device
is measured. Then the last one starts, and the rounds begin. Virtual time: all devices in one process.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import psutil
from rich.console import Console

from emulation.bench.harness.crowd import ClosedRound, Crowd, crowd
from emulation.bench.harness.figures import Findings, Measure, shown
from emulation.bench.harness.growth import exponent, exponent_of_log
from emulation.bench.harness.processes import crew
from emulation.bench.harness.virtual_figures import VirtualFigures, VirtualRun, control_of_rounds
from emulation.launch.forkserver import PRELOAD
from peers.errors import InputError

SIZES = (16, 32, 64, 128, 200)
LEAST, MOST = 4, 512
ROUNDS, VIRTUAL_ROUNDS = 3, 40
VIRTUAL_SIZES = (4, 8, 16)  # in one process, whose time grows with the square of the size
VIRTUAL_S = 120.0  # longest time of one of these
IDLE_S = 10.0  # in which the devices are idle
PROBE_S = 0.5
NEEDED_MB = 80.0  # memory that must be free for each device
SCENARIO = """
clock = "{clock}"
[devices]
count = {count}
[data]
persons = 1
[adapter]
rank = 2
max_devices = {slots}
bases = "independent" # `tiny` has room for 64 orthogonal bases of rank 2
[topology]
kind = "regular"
degree = 4
[round]
count = {rounds}
local_steps = {steps}
deadline_s = 1000.0
[correction]
rounds = 2
[membership]
probe_s = {probe_s}
settle_s = 3000.0
[eval]
every = {every}
"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Column:
    """One figure at all sizes. most: its bound. growth: the largest exponent; nan: of log N; None: any.

    A time on one machine may grow as N times the work of a device.
    """

    unit: str
    most: float | None = None
    growth: float | None = 1.0


COLUMNS: Mapping[str, Column] = {
    "start: all but one know each other": Column("s", growth=2.0),
    "CPU of a device at its start": Column("s"),
    "agreement after the start of the last": Column("s"),
    "memory of a device, PSS": Column("MB", 100.0),
    "CPU of an idle device": Column("% of a core", 0.3),
    "CPU of a device in a round": Column("s"),
    "seconds of a round": Column("s", growth=2.0),
    "false deaths": Column("devices", 0.0, None),
    "budget violations": Column("rounds", 0.0, None),
    "control of a device to its first round": Column("kB"),
    "control of a device in a period": Column("B", growth=math.nan),
    "control of a device in a round": Column("B"),
    "control, share of the budget": Column("%", 5.0),
    "virtual: latency, p95": Column("ms"),
    "virtual: control of a device in a round": Column("B"),
    "virtual: control, share of the budget": Column("%", 5.0),
    "virtual: budget violations": Column("rounds", 0.0, None),
    "virtual: rounds to 95 % of everyone's facts": Column("rounds"),
    "virtual: bytes of a device to then": Column("MB", growth=2.0),
}
Figures = dict[str, tuple[float, ...]]  # by column; one value, or one for each device


def limit_s(count: int) -> float:
    """The longest time of one size with real devices. A figure that is not complete by then is nan."""
    return 40 + 2.8 * count


@dataclass
class Measured:
    """All figures. `say`: shows those of one size as soon as they are known."""

    say: Say
    figures: list[tuple[int, Figures]] = field(default_factory=list)  # with the size
    notes: list[str] = field(default_factory=list)

    def add(self, count: int, figures: Figures) -> None:
        """Add figures of one size."""
        self.figures.append((count, figures))
        self.say(_line(count, figures))

    def findings(self) -> Findings:
        """One group for each column, with all sizes and the exponent."""
        found = Findings("Cost and growth of a device among many", "unweft bench scale")
        for name, column in COLUMNS.items():
            found.measures += self._group(name, column)
        found.notes += ["growth: the exponent of N, fitted to all sizes of a figure", *self.notes]
        return found

    def _group(self, name: str, column: Column) -> list[Measure]:
        of = [(n, figures[name]) for n, figures in self.figures if name in figures]
        rows = [Measure(name, f"{n} devices", column.unit, some, most=column.most) for n, some in of]
        if len(rows) < 2 or column.growth is None:
            return rows
        sizes = [n for n, _ in of]
        grows = exponent(sizes, [row.median for row in rows])
        bound = exponent_of_log(sizes) if math.isnan(column.growth) else column.growth
        return [*rows, Measure(name, "growth", "exponent", (grows,), most=bound)]


def run(
    sizes: Sequence[int] = SIZES,
    rounds: int = ROUNDS,
    virtual: Sequence[int] = VIRTUAL_SIZES,
    idle_s: float = IDLE_S,
    say: Say | None = None,
) -> Findings:
    """Measure each size with real devices, then the sizes `virtual` up to the largest one in virtual time.

    `rounds`: of real devices after the first one. Raises InputError for a size out of range, and RuntimeError
    if a device ends.
    """
    wrong = [n for n in sizes if not LEAST <= n <= MOST]
    if wrong or len({*sizes}) != len(sizes):
        given = ", ".join(map(str, sizes))
        raise InputError(f"--sizes: {given}; allowed: different numbers from {LEAST} to {MOST}")
    measured = Measured(say=say or Console(stderr=True, highlight=False).print)
    for count in sizes:
        free_mb = psutil.virtual_memory().available / 1e6
        if free_mb < count * NEEDED_MB:
            measured.notes.append(f"{count} devices: not measured: {free_mb:,.0f} MB of memory are free")
            continue
        measured.add(count, _real(count, max(sizes), rounds, idle_s, measured.notes))
    for count in virtual:
        if count <= max(sizes):
            measured.add(count, _virtual(count, max(sizes), measured.notes))
    return measured.findings()


def _line(count: int, figures: Figures) -> str:
    """The progress: the figures of one size, as soon as they are known."""
    of = [f"{name}: {shown(fmean(some))} {COLUMNS[name].unit}" for name, some in figures.items()]
    return f"{count} devices: {'; '.join(of)}"


def _text(count: int, slots: int, clock: str, rounds: int, steps: int, every: int) -> str:
    return SCENARIO.format(
        count=count, slots=slots, clock=clock, rounds=rounds, steps=steps, every=every, probe_s=PROBE_S
    )


# -- real devices --------------------------------------------------------------------------------------------
def _real(count: int, slots: int, rounds: int, idle_s: float, notes: list[str]) -> Figures:
    scenario = _text(count, slots, "real", 1_000_000, 1, 0)  # the benchmark ends the run
    names, until = [f"d{n}" for n in range(count)], time.monotonic() + limit_s(count)
    with tempfile.TemporaryDirectory() as folder, crowd(scenario, Path(folder)) as devices:
        devices.start(*names[:-1])
        known = devices.wait(devices.all_known, until)
        figures: Figures = {"start: all but one know each other": (_latest_s(devices),)}
        figures["CPU of a device at its start"] = tuple(devices.cpu_s().values())
        figures["CPU of an idle device"] = tuple(_idle_percent(devices, idle_s)) if known else (math.nan,)
        devices.start(names[-1])
        figures["agreement after the start of the last"] = (_agreement_s(devices, names[-1], until),)
        figures |= _rounds(devices, rounds, until)
        suspected = devices.count("suspected")
    if suspected:
        notes.append(f"{count} devices: {suspected} suspicions")
    return figures


def _latest_s(devices: Crowd) -> float:
    """When the last device knew all others; nan if one does not."""
    knew = [devices.knew_all_s(device) for device in devices.started]
    return max((math.nan if at is None else at for at in knew), key=lambda at: (math.isnan(at), at))


def _idle_percent(devices: Crowd, seconds: float) -> list[float]:
    """The share of a core that each device uses while it waits for the last one."""
    before, began = devices.cpu_s(), time.monotonic()
    devices.wait(lambda: False, began + seconds)
    after, passed = devices.cpu_s(), time.monotonic() - began
    return [100 * (after[name] - before[name]) / passed for name in before]


def _agreement_s(devices: Crowd, last: str, until: float) -> float:
    devices.wait(devices.all_known, until)
    started = next((float(e["t_s"]) for e in devices.events[last] if e["event"] == "started"), math.nan)
    return _latest_s(devices) - started


def _rounds(devices: Crowd, rounds: int, until: float) -> Figures:
    """The figures of rounds after the first one of each device."""

    def closed(number: int) -> Callable[[], bool]:
        return lambda: all(len(of) >= number for of in devices.rounds.values())

    figures: Figures = {}
    if devices.wait(closed(1), until):
        cpu, first = devices.cpu_s(), {name: len(of) for name, of in devices.rounds.items()}
        devices.wait(closed(1 + rounds), until)
        spent = {name: used - cpu[name] for name, used in devices.cpu_s().items()}
        done = {name: len(of) - first[name] for name, of in devices.rounds.items()}
        figures["CPU of a device in a round"] = _each(spent[name] / n for name, n in done.items() if n)
    figures["memory of a device, PSS"] = tuple(size / 1e6 for size in devices.pss_bytes())
    figures["false deaths"] = (float(devices.count("peer_gone", kind="crash")),)
    over = sum(line.spent_bytes > line.granted_bytes for of in devices.rounds.values() for line in of)
    figures["budget violations"] = (float(over),)
    return figures | _traffic([of for of in devices.rounds.values() if len(of) > 1])


def _traffic(rounds: Sequence[list[ClosedRound]]) -> Figures:
    """Times and control bytes, from the end of the first round of a device to the end of its last one."""
    seconds = [(of[-1].end_s - of[0].end_s) / (len(of) - 1) for of in rounds]
    control = [control_of_rounds(of) for of in rounds]
    periods = [of / PROBE_S for of in seconds]
    return {
        "seconds of a round": _each(seconds),
        "control of a device to its first round": _each(of[0].control_bytes / 1e3 for of in rounds),
        "control of a device in a period": _each(b / n for b, n in zip(control, periods, strict=True)),
        "control of a device in a round": _each(control),
        "control, share of the budget": _each(
            100 * size / of[0].granted_bytes for size, of in zip(control, rounds, strict=True)
        ),
    }


def _each(values: Iterable[float]) -> tuple[float, ...]:
    """A value for each device; nan if there is none."""
    return tuple(values) or (math.nan,)


# -- virtual time --------------------------------------------------------------------------------------------
def _virtual(count: int, slots: int, notes: list[str]) -> Figures:
    scenario = _text(count, slots, "virtual", VIRTUAL_ROUNDS, 5, 5)
    with tempfile.TemporaryDirectory() as folder, crew(PRELOAD) as child:
        remote = child.remote(VirtualRun)
        remote.begin("run", scenario, folder)
        try:
            found: VirtualFigures = remote.result(VIRTUAL_S)
        except RuntimeError as error:
            notes.append(f"{count} devices in virtual time: {str(error).strip().splitlines()[-1]}")
            return {}
    return {
        "virtual: latency, p95": (1000 * found.latency_p95_s,),
        "virtual: control of a device in a round": (found.control_bytes,),
        "virtual: control, share of the budget": (100 * found.control_share,),
        "virtual: budget violations": (float(found.violations),),
        "virtual: rounds to 95 % of everyone's facts": (found.learnt_round,),
        "virtual: bytes of a device to then": (found.learnt_bytes / 1e6,),
    }
