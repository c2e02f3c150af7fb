"""`unweft bench scale`: what a device costs among more and more devices, and how each figure grows.

Real devices: all are started but one. They settle, so they train nothing, and the CPU time of an idle device
is measured. Then the last one starts, and the rounds begin. Virtual time: all devices in one process. Degree,
churn and budget vary in virtual time only. The file of `--json` has every run, for `unweft plan`.
"""

from __future__ import annotations

import math
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import psutil
from rich.console import Console

from emulation.bench.harness import calibration
from emulation.bench.harness.crowd import ClosedRound, Crowd, crowd
from emulation.bench.harness.figures import Findings, Measure, shown
from emulation.bench.harness.growth import exponent, exponent_of_log
from emulation.bench.harness.processes import crew
from emulation.bench.harness.variants import Variant, others
from emulation.bench.harness.virtual_figures import VirtualFigures, VirtualRun, control_of_rounds
from emulation.launch.forkserver import PRELOAD
from emulation.planning import learning_graphs
from emulation.planning.measured_runs import MeasuredRun
from emulation.scenario.loading import from_table
from emulation.scenario.probe_period import cores, probe_s
from peers.errors import InputError

SIZES = (16, 32, 64, 128, 200)
LEAST, MOST = 4, 512
ROUNDS = 3
VIRTUAL_SIZES = (4, 8, 16)  # in one process, whose time grows with the square of the size
STEPS, EVALUATED = 5, 3  # in virtual time: local steps in a round, rounds from one evaluation to the next
IDLE_S = 10.0  # in which the devices are idle
NEEDED_MB = 80.0  # memory that must be free for each device
MOST_ROUNDS = 10_000  # of one size in virtual time, which bounds its time
CHURN_ROUNDS = 30  # with churn, in virtual time; accuracies are not evaluated
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


def virtual_limit_s(count: int) -> float:
    """The longest time of one size in virtual time, on a machine with much other work."""
    return 900.0 + 15 * count**2


def virtual_rounds(count: int, degree: int) -> int:
    """Rounds of one size in virtual time: more than 3 to 6 devices needed to learn everyone's facts."""
    return math.ceil((8 + 5 * count) / math.pow(learning_graphs.figures(count, degree).gap, 1.5))


@dataclass
class Measured:
    """All figures. `slots`: of all runs. `say`, `save`: called with the figures of each size."""

    slots: int
    say: Say
    save: Callable[[Findings], None]
    figures: list[tuple[int, Figures]] = field(default_factory=list)  # with the size
    notes: list[str] = field(default_factory=list)
    runs: list[MeasuredRun] = field(default_factory=list)

    def add(self, count: int, figures: Figures) -> None:
        """Add figures of one size."""
        self.figures.append((count, figures))
        self.tell(_line(count, figures))

    def tell(self, line: str) -> None:
        """Show a line, and save what is measured so far."""
        self.say(line)
        self.save(self.findings())

    def findings(self) -> Findings:
        """One group for each column, with all sizes and the exponent."""
        found = Findings("Cost and growth of a device among many", "unweft bench scale")
        for name, column in COLUMNS.items():
            found.measures += self._group(name, column)
        found.notes += ["growth: the exponent of N, fitted to all sizes of a figure", *self.notes]
        found.runs += [run.model_dump() for run in self.runs]
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
    virtual: Sequence[int] | None = None,
    idle_s: float = IDLE_S,
    say: Say | None = None,
    degree: Sequence[int] = (4,),
    churn: Sequence[float] = (),
    budget: Sequence[int] = (),
    save: Callable[[Findings], None] | None = None,
) -> Findings:
    """Measure each size with real devices, then the sizes `virtual` in virtual time.

    `virtual` None: VIRTUAL_SIZES up to the largest one of `sizes`. `rounds`: of real devices after the first
    one. `degree`: of all runs, then others. Each size is measured again in virtual time with each other
    degree, each `churn` and each `budget`. `save`: called with all figures
    after each size. Raises InputError for a size out of range, and RuntimeError if a device ends.
    """
    simulated = [n for n in VIRTUAL_SIZES if n <= max(sizes, default=0)] if virtual is None else [*virtual]
    _check("--sizes", sizes, LEAST)
    _check("--virtual", simulated, 2)
    if not sizes and not simulated:
        raise InputError("--sizes: none; allowed: sizes here or in --virtual")
    base = Variant(degree[0])
    variants = [base, *others(base, degree, churn, budget)]
    _check_rounds(simulated, variants)
    say = say or Console(stderr=True, highlight=False).print
    measured = Measured(max([*sizes, *simulated]), say, save or (lambda so_far: None))
    for count in sizes:
        free_mb = psutil.virtual_memory().available / 1e6
        if free_mb < count * NEEDED_MB:
            measured.notes.append(f"{count} devices: not measured: {free_mb:,.0f} MB of memory are free")
            continue
        measured.add(count, _real(count, base, rounds, idle_s, measured))
    for count in simulated:
        measured.add(count, _virtual(count, base, measured))
    for variant in variants[1:]:
        for count in (n for n in simulated if not variant.same_graph(base, n)):
            measured.tell(_line(count, _virtual(count, variant, measured), str(variant)))
    return measured.findings()


def _check(option: str, sizes: Sequence[int], least: int) -> None:
    if not all(least <= n <= MOST for n in sizes) or len({*sizes}) != len(sizes):
        given = ", ".join(map(str, sizes))
        raise InputError(f"{option}: {given}; allowed: different numbers from {least} to {MOST}")


def _check_rounds(sizes: Sequence[int], variants: Sequence[Variant]) -> None:
    """The rounds of a ring grow as N^4, so the time of a size would have no bound."""
    for degree in (variant.degree for variant in variants if not variant.churn):
        for count in sizes:
            if (rounds := virtual_rounds(count, degree)) > MOST_ROUNDS:
                raise InputError(
                    f"--virtual: {count} devices of degree {degree} need {rounds:,} rounds to learn"
                    f" everyone's facts; allowed: sizes that need {MOST_ROUNDS:,} or fewer"
                )


def _line(count: int, figures: Figures, variant: str = "") -> str:
    """The progress: the figures of one size, as soon as they are known."""
    of = [f"{name}: {shown(fmean(some))} {COLUMNS[name].unit}" for name, some in figures.items()]
    return f"{', '.join(filter(None, (f'{count} devices', variant)))}: {'; '.join(of)}"


# -- real devices --------------------------------------------------------------------------------------------
def _real(count: int, variant: Variant, rounds: int, idle_s: float, measured: Measured) -> Figures:
    text = variant.scenario(count, measured.slots, "real", 1_000_000, 1, 0)  # the benchmark ends the run
    scenario = from_table(tomllib.loads(text))
    names = [f"d{n}" for n in range(count)]
    with tempfile.TemporaryDirectory() as folder, crowd(scenario, Path(folder)) as devices:
        until = time.monotonic() + limit_s(count)
        devices.start(*names[:-1])
        known = devices.wait(devices.all_known, until)
        figures: Figures = {"start: all but one know each other": (_latest_s(devices),)}
        figures["CPU of a device at its start"] = tuple(devices.cpu_s().values())
        figures["CPU of an idle device"] = tuple(_idle_percent(devices, idle_s)) if known else (math.nan,)
        devices.start(names[-1])
        figures["agreement after the start of the last"] = (_agreement_s(devices, names[-1], until),)
        figures |= _rounds(devices, rounds, until)
        suspected = devices.count("suspected")
    measured.runs.append(calibration.measured_run(scenario, devices.rounds, _machine_figures(figures)))
    if suspected:
        measured.notes.append(f"{count} devices: {suspected} suspicions")
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
    figures["memory of a device, PSS"] = tuple(of.pss / 1e6 for of in devices.memory().values())
    figures["false deaths"] = (float(devices.count("peer_gone", kind="crash")),)
    over = sum(line.spent_bytes > line.granted_bytes for of in devices.rounds.values() for line in of)
    figures["budget violations"] = (float(over),)
    return figures | _traffic(
        [of for of in devices.rounds.values() if len(of) > 1], probe_s(len(devices.rounds), cores())
    )


def _traffic(rounds: Sequence[list[ClosedRound]], period_s: float) -> Figures:
    """Times and control bytes, from the end of the first round of a device to the end of its last one."""
    seconds = [(of[-1].end_s - of[0].end_s) / (len(of) - 1) for of in rounds]
    control = [control_of_rounds(of) for of in rounds]
    periods = [of / period_s for of in seconds]
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


def _machine_figures(figures: Figures) -> dict[str, float]:
    """The figures that only processes have."""
    columns = (("cpu_s", "CPU of a device in a round", 1.0), ("pss_bytes", "memory of a device, PSS", 1e6))
    return {key: unit * fmean(figures[name]) for key, name, unit in columns if name in figures}


# -- virtual time --------------------------------------------------------------------------------------------
def _virtual(count: int, variant: Variant, measured: Measured) -> Figures:
    learns = not variant.churn
    shape = (virtual_rounds(count, variant.degree), STEPS, EVALUATED) if learns else (CHURN_ROUNDS, STEPS, 0)
    scenario = variant.scenario(count, measured.slots, "virtual", *shape)
    with tempfile.TemporaryDirectory() as folder, crew(PRELOAD) as child:
        remote = child.remote(VirtualRun)
        remote.begin("run", scenario, folder)
        try:
            found: VirtualFigures = remote.result(virtual_limit_s(count))
        except RuntimeError as error:
            why = str(error).strip().splitlines()[-1]
            measured.notes.append(f"{count} devices in virtual time, {variant}: {why}")
            return {}
    learnt = {"learnt_rounds": found.learnt_between}
    measured.runs.append(
        calibration.measured_run(from_table(tomllib.loads(scenario)), found.learning, learnt)
    )
    if learns and math.isnan(found.learnt_between):
        measured.notes.append(f"{count} devices, {variant}: 95 % was not reached in {shape[0]} rounds")
    return {
        "virtual: latency, p95": (1000 * found.latency_p95_s,),
        "virtual: control of a device in a round": (found.control_bytes,),
        "virtual: control, share of the budget": (100 * found.control_share,),
        "virtual: budget violations": (float(found.violations),),
        "virtual: rounds to 95 % of everyone's facts": (found.learnt_round,),
        "virtual: bytes of a device to then": (found.learnt_bytes / 1e6,),
    }
