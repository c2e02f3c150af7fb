"""Checks of `correction.masked`: what a mask would not cover, and what it needs (docs/privacy.md)."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator_free.correction.masking import LEAST_MEMBERS, MOST_MEMBERS
from coordinator_free.correction.policies import SCHEDULES
from emulation.scenario.conflicts import Conflict, Problems, conflict_problems
from emulation.scenario.schema import Scenario

# The largest power of two with which a report of three groups fits into a message: 100 KiB of values
# (transport/wire/packing.py).
MOST_SKETCH = 2048


def mask_problems(scenario: Scenario) -> Problems:
    """A pair for each problem: the key path, and a text with the value and the allowed values."""
    if scenario.correction.masked:
        yield from conflict_problems(_uncovered(scenario), "correction.masked", "correction.masked = false")


def _uncovered(scenario: Scenario) -> Iterable[Conflict]:
    correction, devices = scenario.correction, len(scenario.all_devices)
    schedule = correction.policy if correction.policy in SCHEDULES else ""
    yield "correction.policy", schedule, "but it measures nothing", "a policy that measures"
    moments = "but its second moments go to single neighbours without a mask"
    yield "correction.interference", correction.interference, moments, "false"
    # A device keeps one report of each member, and the next one replaces it (MaskedReports.keep_sum).
    overlap = correction.period if correction.period <= correction.delay else 0
    decided = "but each diagnosis must be decided before the next one begins"
    yield "correction.period", overlap, decided, f"more than correction.delay = {correction.delay}"
    sketch = correction.sketch if correction.sketch > MOST_SKETCH else 0
    yield "correction.sketch", sketch, "but its numbers have 8 bytes each", f"at most {MOST_SKETCH}"
    many = scenario.adapter.max_devices if scenario.adapter.max_devices > MOST_MEMBERS else 0
    yield "adapter.max_devices", many, "but no larger cohort sends reports", f"at most {MOST_MEMBERS}"
    few = devices if devices < LEAST_MEMBERS else 0
    yield "devices.count", few, "but no smaller cohort sends reports", f"at least {LEAST_MEMBERS}"
    clear = "" if scenario.keys.enabled else "false"
    yield "keys.enabled", clear, "but without keys anybody can be a member of a cohort", "true"
