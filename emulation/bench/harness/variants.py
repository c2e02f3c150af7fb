"""The scenarios of `unweft bench scale`: degree, churn and budget at any number of devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from emulation.scenario.probe_period import cores, probe_s

SPARE_SLOTS = 8  # for newcomers, while slots of departed devices are in quarantine
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
degree = {degree}
[radio]
budget_bytes = {budget}
[round]
count = {rounds}
local_steps = {steps}
deadline_s = {deadline_s}
[correction]
rounds = 2
[membership]
probe_s = {probe_s}
settle_s = 3000.0
[eval]
every = {every}
"""
CHURN = """
[churn]
rate = {rate}
kind = ["leave", "crash", "join", "join"] # as many arrivals as departures
start = 2
least = {least}
most = {most}
"""


@dataclass(frozen=True)
class Variant:
    """The variables beside the number of devices. churn: events a round, in the whole network."""

    degree: int = 4
    churn: float = 0.0
    budget_bytes: int = 4_000_000

    def scenario(self, count: int, slots: int, clock: str, rounds: int, steps: int, every: int) -> str:
        """A scenario as TOML text. `every`: rounds between evaluations; 0: none.

        Rounds end at a deadline where devices may crash, so that they go on before the crash is confirmed.
        """
        spare = SPARE_SLOTS if self.churn else 0
        bounds = {"least": max(2, count - 2), "most": count + 2}
        churn = CHURN.format(rate=self.churn, **bounds) if self.churn else ""
        shape = {"count": count, "slots": max(slots, count + spare), "degree": self.degree}
        period_s = probe_s(count, cores() if clock == "real" else count)
        times = {"rounds": rounds, "steps": steps, "every": every, "probe_s": period_s}
        deadline_s = 1.0 if self.churn else 1000.0
        limits = {"budget": self.budget_bytes, "deadline_s": deadline_s}
        return SCENARIO.format(clock=clock, **shape, **times, **limits) + churn

    def same_graph(self, base: Variant, count: int) -> bool:
        """Whether only the degree differs, and both graphs are complete."""
        other = replace(base, degree=self.degree)
        return self == other and min(self.degree, base.degree) >= count - 1

    def __str__(self) -> str:
        return f"degree {self.degree}, {self.churn:g} events a round, budget {self.budget_bytes} B"


def others(
    base: Variant, degrees: Sequence[int], churns: Sequence[float], budgets: Sequence[int]
) -> Iterator[Variant]:
    """Variants that differ from the base in one variable."""
    yield from (replace(base, degree=degree) for degree in degrees if degree != base.degree)
    yield from (replace(base, churn=churn) for churn in churns if churn != base.churn)
    yield from (replace(base, budget_bytes=budget) for budget in budgets if budget != base.budget_bytes)
