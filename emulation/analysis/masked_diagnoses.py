"""How many diagnoses masks cost: without a report of the whole cohort, nobody can read the sum."""

from __future__ import annotations

from collections import Counter

from emulation.analysis.records import Record, RunRecords


def masked_diagnoses(run: RunRecords) -> Record | None:
    """{"decided", "lost", "clipped"}: device-diagnoses with and without a decision, and reports of which a
    value was clipped. None for a run without masks."""
    if not run.scenario.correction.masked:
        return None
    found = Counter(line["event"] for device in run.devices for line in run.events[device])
    return {"decided": found["decision"], "lost": found["undecided"], "clipped": found["clipped"]}
