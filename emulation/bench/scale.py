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
ROUNDS, VIRTUAL_ROUNDS = 3, 60
VIRTUAL_MOST = 32  # devices in virtual time: the time of a run grows with their square
IDLE_S = 10.0  # in which the devices are idle
PROBE_S = 0.5
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
    """One figure at all sizes. most: its bound. growth: the largest exponent; nan: of log N; None: any."""

    unit: str
    most: float | None = None
    growth: float | None = 1.0


COLUMNS: Mapping[str, Column] = {
    "start: all but one know each other": Column("s"),
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


@dataclass
class Limits:
    """The longest times of one size, in seconds. A figure that is not complete by then is nan."""

    start_s: float
    rounds_s: float

    @classmethod
    def of(cls, count: int) -> Limits:
        return cls(60 + 2.5 * count, 60 + 2.0 * count)


@dataclass
class Measured:
    """The figures by size."""

    sizes: list[int] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def findings(self) -> Findings:
        """One group for each column, with all sizes and the exponent."""
        found = Findings("Cost and growth of a device among many", "unweft bench scale")
        for name, column in COLUMNS.items():
            found.measures += self._group(name, column)
        fitted = ", ".join(map(str, self.sizes))
        log = f"log N itself has {exponent_of_log(self.sizes):.2f} there"
        found.notes += [f"growth: the exponent of N, fitted to {fitted} devices; {log}", *self.notes]
        return found

    def _group(self, name: str, column: Column) -> list[Measure]:
        of = [(n, one[name]) for n, one in zip(self.sizes, self.figures, strict=True) if name in one]
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
    virtual_rounds: int = VIRTUAL_ROUNDS,
    idle_s: float = IDLE_S,
    say: Say | None = None,
) -> Findings:
    """Measure each size with real devices, and up to VIRTUAL_MOST devices in virtual time too.

    `rounds`: of real devices after the first one. `virtual_rounds`: 0: nothing in virtual time.
    Raises InputError for a size out of range, and RuntimeError if a device ends.
    """
    wrong = [n for n in sizes if not LEAST <= n <= MOST]
    if wrong or len({*sizes}) != len(sizes):
        raise InputError(
            f"--sizes: {', '.join(map(str, sizes))}; allowed: different numbers from {LEAST} to {MOST}"
        )
    say = say or Console(stderr=True, highlight=False).print
    measured = Measured()
    for count in sizes:
        figures = _real(count, max(sizes), rounds, idle_s, measured.notes)
        say(_line(count, figures))
        if virtual_rounds and count <= VIRTUAL_MOST:
            virtual = _virtual(count, max(sizes), virtual_rounds)
            say(_line(count, virtual))
            figures |= virtual
        measured.sizes.append(count)
        measured.figures.append(figures)
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
    limits, names = Limits.of(count), [f"d{n}" for n in range(count)]
    with tempfile.TemporaryDirectory() as folder, crowd(scenario, Path(folder)) as devices:
        devices.start(*names[:-1])
        known = devices.wait(devices.all_known, limits.start_s)
        figures: Figures = {"start: all but one know each other": (_latest_s(devices),)}
        figures["CPU of an idle device"] = tuple(_idle_percent(devices, idle_s)) if known else (math.nan,)
        devices.start(names[-1])
        figures["agreement after the start of the last"] = (_agreement_s(devices, names[-1], limits.start_s),)
        figures |= _rounds(devices, rounds, limits.rounds_s)
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
    devices.wait(lambda: time.monotonic() - began >= seconds, 2 * seconds)
    after, passed = devices.cpu_s(), time.monotonic() - began
    return [100 * (after[name] - before[name]) / passed for name in before]


def _agreement_s(devices: Crowd, last: str, limit_s: float) -> float:
    devices.wait(devices.all_known, limit_s)
    started = next((float(e["t_s"]) for e in devices.events[last] if e["event"] == "started"), math.nan)
    return _latest_s(devices) - started


def _rounds(devices: Crowd, rounds: int, limit_s: float) -> Figures:
    """The figures of rounds after the first one of each device."""

    def closed(number: int) -> Callable[[], bool]:
        return lambda: all(len(of) >= number for of in devices.rounds.values())

    figures: Figures = {}
    if devices.wait(closed(1), limit_s):
        cpu, first = devices.cpu_s(), {name: len(of) for name, of in devices.rounds.items()}
        devices.wait(closed(1 + rounds), limit_s)
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
def _virtual(count: int, slots: int, rounds: int) -> Figures:
    scenario = _text(count, slots, "virtual", rounds, 5, 5)
    with tempfile.TemporaryDirectory() as folder, crew(PRELOAD) as child:
        remote = child.remote(VirtualRun)
        remote.begin("run", scenario, folder)
        found: VirtualFigures = remote.result(120 + 2.0 * count * rounds)
    return {
        "virtual: latency, p95": (1000 * found.latency_p95_s,),
        "virtual: control of a device in a round": (found.control_bytes,),
        "virtual: control, share of the budget": (100 * found.control_share,),
        "virtual: budget violations": (float(found.violations),),
        "virtual: rounds to 95 % of everyone's facts": (found.learnt_round,),
        "virtual: bytes of a device to then": (found.learnt_bytes / 1e6,),
    }
