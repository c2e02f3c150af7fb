"""What a run among so many devices would cost: the figures of the model, put together (docs/plan.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from emulation.planning.model import Model
from emulation.planning.quantities import (
    CHURN,
    CONTROL,
    CPU,
    FOREIGN,
    LEARNT,
    MEMORY,
    OWN,
    QUANTITIES,
    ROUND,
    TRANSFER,
    Case,
    Quantity,
)
from emulation.planning.regression import Estimate, exactly
from peers.errors import InputError

PASSES = 4  # a round takes longer with more bytes, and has more control in a longer time
CONTROL_SHARE = 5.0  # % of the budget: radio.control_share at most
ARRIVALS = 0.5  # of the events of churn: as many devices come as go
MOST_UNKNOWN = 0.05  # the facts that are not known when 95 % are
INDEPENDENT = (OWN, LEARNT, TRANSFER, MEMORY, CPU)  # their terms have no figure of the run


@dataclass(frozen=True)
class Wanted:
    """The run to plan. None: as in the measured runs. budget_bytes: C_t of a device.

    over_rounds: the rounds that foreign bytes are the mean of; None: those to 95 %.
    """

    devices: int
    degree: int
    churn: float
    budget_bytes: int
    local_steps: int
    rate_Bps: float | None = None
    latency_s: float | None = None
    over_rounds: int | None = None


@dataclass(frozen=True)
class Row:
    """One figure of the plan. `estimate` None: never."""

    title: str
    unit: str
    estimate: Estimate | None


@dataclass(frozen=True)
class Forecast:
    """The figures of one plan, and what the reader must know to judge them."""

    wanted: Wanted
    rows: list[Row]
    notes: list[str]

    def find(self, title: str) -> Row:
        """The row with this title."""
        return next(row for row in self.rows if row.title == title)


def forecast(model: Model, wanted: Wanted) -> Forecast:
    """Raises InputError if the run to plan needs a figure that was not measured."""
    if wanted.churn and (CHURN.name not in model.fits or TRANSFER.name not in model.fits):
        raise InputError(
            f"--churn: {wanted.churn:g}; allowed: 0, since too few measured runs have events (`unweft bench"
            " scale --churn RATE`)"
        )
    return _Forecast(model, wanted).make()


def is_determined(model: Model, wanted: Wanted) -> bool:
    """Whether the model has all figures that the whole forecast of this run depends on."""
    needed = {quantity.name for quantity in QUANTITIES if quantity.required}
    events = {TRANSFER.name, CHURN.name} if wanted.churn else set()
    return needed | events <= {*model.fits}


def measurable(model: Model, wanted: Wanted) -> dict[str, Estimate | None]:
    """The figures that a run of this kind would measure, by name; those that are determined.

    The rounds to 95 % are those without a budget if the model does not determine the whole forecast.
    """
    planned = _Forecast(model, wanted)
    found = {quantity.name: model.estimate(quantity, planned.case) for quantity in INDEPENDENT}
    if is_determined(model, wanted):
        whole = planned.make()
        found |= {of.name: whole.find(of.title).estimate for of in (FOREIGN, CONTROL, ROUND, LEARNT)}
    return found


class _Forecast:
    """Computes one plan step by step."""

    def __init__(self, model: Model, wanted: Wanted) -> None:
        self._model, self._wanted = model, wanted
        given = {"rate_Bps": wanted.rate_Bps, "latency_s": wanted.latency_s}
        settings = model.settings.model_copy(update={k: v for k, v in given.items() if v is not None})
        start = wanted.local_steps * settings.step_s + settings.latency_s
        self.case = Case(
            *(settings, wanted.devices, wanted.degree, wanted.churn, wanted.local_steps, start, 0.0, 0.0)
        )

    def make(self) -> Forecast:
        free = self._of(LEARNT, self.case)
        own = self._of(OWN, self.case)
        over = self._wanted.over_rounds
        foreign = self._foreign(exactly(float(over)) if over else free, own)
        transfer = self._of(TRANSFER, self.case) if self._wanted.churn else exactly(0.0)
        data = own + foreign + transfer
        control, round_s = self._control_and_time(data)
        sent = _at_most(data + control, self._wanted.budget_bytes)
        share = _share(data, control, self._wanted.budget_bytes)
        rounds, everyone = self._rounds(free, share), float(self._wanted.devices)
        rows = [
            Row(OWN.title, "B", own),
            Row(FOREIGN.title, "B", foreign),
            *([Row(TRANSFER.title, "B", transfer)] if self._wanted.churn else []),
            Row(CONTROL.title, "B", control),
            Row("control, share of the budget", "%", control.times(100 / self._wanted.budget_bytes)),
            Row("sent by a device, in a round", "B", sent),
            Row("sent by all devices, in a round", "B", sent.times(everyone)),
            Row("share of the data that the budget lets pass", "%", share.times(100.0)),
            Row(ROUND.title, "s", round_s),
            Row(LEARNT.title, "rounds", rounds),
            Row("time to 95 %", "s", rounds and rounds.times(round_s)),
            Row("sent by a device, to 95 %", "B", rounds and rounds.times(sent)),
            Row("sent by all devices, to 95 %", "B", rounds and rounds.times(sent).times(everyone)),
            *self._optional(MEMORY, CPU),
        ]
        return Forecast(self._wanted, rows, self._notes(control, share, rounds))

    def _of(self, quantity: Quantity, case: Case) -> Estimate:
        found = self._model.estimate(quantity, case)
        assert found is not None  # fit_model and forecast have checked it
        return found

    def _foreign(self, rounds: Estimate, own: Estimate) -> Estimate:
        """The more rounds the learning takes, the fewer copies are sent in each of them.

        At most every copy is sent in every round, at the cost of an own block.
        """
        found = [self._of(FOREIGN, replace(self.case, learning_rounds=of)) for of in rounds]
        most = own.times(self.case.devices - 1.0)
        return Estimate(found[2].low, min(found[1].middle, most.middle), min(found[0].high, most.high))

    def _optional(self, *quantities: Quantity) -> list[Row]:
        found = ((q, self._model.estimate(q, self.case)) for q in quantities)
        return [Row(q.title, q.unit, estimate) for q, estimate in found if estimate is not None]

    def _control_and_time(self, data: Estimate) -> tuple[Estimate, Estimate]:
        """Both depend on each other. The bounds of the one follow from the bounds of the other."""
        bounds = []
        for number in range(3):
            case, control, round_s = self.case, exactly(0.0), exactly(0.0)
            for _ in range(PASSES):
                control = self._of(CONTROL, case)
                if self._wanted.churn:
                    control += self._of(CHURN, case)
                sent = min(data[number] + control[number], self._wanted.budget_bytes)
                round_s = self._of(ROUND, replace(case, sent_bytes=sent))
                case = replace(case, sent_bytes=sent, round_s=round_s[number])
            bounds.append((control[number], round_s[number]))
        control_bounds, time_bounds = zip(*bounds, strict=True)
        return Estimate(*control_bounds), Estimate(*time_bounds)

    def _rounds(self, free: Estimate, share: Estimate) -> Estimate | None:
        """Rounds to 95 %. With a share s of the data, everything takes 1/s times as long.

        None if nothing passes, or if newcomers arrive faster than they are learnt (Little's law). Without an
        upper bound if nothing passes at the upper bound of the bytes.
        """
        if not share.middle:
            return None
        high = free.high / share.low if share.low else math.inf
        rounds = Estimate(max(1.0, free.low / share.high), free.middle / share.middle, high)
        return None if self._learning(rounds.middle) > MOST_UNKNOWN * self._wanted.devices else rounds

    def _learning(self, rounds: float) -> float:
        """Devices whose facts are not known yet: arrivals a round x rounds until they are known."""
        return ARRIVALS * self._wanted.churn * rounds

    def _notes(self, control: Estimate, share: Estimate, rounds: Estimate | None) -> list[str]:
        settings, wanted = self._model.settings, self._wanted
        notes = []
        slots = settings.input_width // settings.rank
        if wanted.devices > slots:
            notes.append(
                f"{wanted.devices} blocks of rank {settings.rank} do not fit in d = {settings.input_width}:"
                f" {slots} do. Beyond that, bases overlap, and nobody has measured what is learnt then."
            )
        if control.middle > CONTROL_SHARE / 100 * wanted.budget_bytes:
            notes.append("Control needs more than 5 % of the budget: `unweft run` may refuse this run.")
        if not share.low:
            notes.append("At the upper bound control takes the whole budget, so no data pass.")
        if share.middle and rounds is None:
            notes.append("Newcomers arrive faster than 95 % of the facts can be learnt.")
        if wanted.degree not in self._model.degrees:
            notes.append(f"The degree {wanted.degree} was not measured, only {_list(self._model.degrees)}.")
        notes += self._beyond()
        factor = wanted.devices / max(self._model.sizes)
        if factor > 1:
            notes.append(
                f"{wanted.devices} devices are {factor:.3g} times the largest measured size"
                f" ({max(self._model.sizes)}). The intervals hold only if the terms of the model hold there."
            )
        return notes

    def _beyond(self) -> Iterator[str]:
        """Settings of the run that no measured run has."""
        measured, wanted = self._model.settings, self._wanted
        if self._model.local_steps != (wanted.local_steps,):
            yield (
                f"Rounds to 95 % have no term for local steps. They are those of runs with"
                f" {_list(self._model.local_steps)} local steps, also with {wanted.local_steps}."
            )
        pairs = (
            ("--rate", "B/s", wanted.rate_Bps, measured.rate_Bps),
            ("--latency", "s", wanted.latency_s, measured.latency_s),
        )
        for option, unit, given, of_runs in pairs:
            if given is not None and given != of_runs:
                yield f"{option}: {given:g} {unit} was not measured. All runs have {of_runs:g} {unit}."


def _share(data: Estimate, control: Estimate, budget: int) -> Estimate:
    """The share of the data that a round's budget lets pass. Its low bound is that of most bytes."""
    return Estimate(*(_one_share(data[n], control[n], budget) for n in (2, 1, 0)))


def _one_share(data: float, control: float, budget: int) -> float:
    return min(1.0, max(0.0, budget - control) / data) if data else 1.0


def _at_most(bytes_: Estimate, budget: int) -> Estimate:
    return Estimate(*(min(value, float(budget)) for value in bytes_))


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
