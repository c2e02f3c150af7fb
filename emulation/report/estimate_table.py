"""The estimate of a run as a table for the terminal."""

from __future__ import annotations

import os

from rich.table import Table

from emulation.report.formatting import megabytes, plural
from emulation.scenario.estimate import RunEstimate
from emulation.scenario.events import EventConfig
from emulation.scenario.schema import Scenario


def table(scenario: Scenario, estimate: RunEstimate) -> Table:
    """One row for each estimate, with its origin."""
    found = Table(title=f"{scenario.name}: the estimate", title_justify="left", show_header=False)
    for name, text in rows(scenario, estimate):
        found.add_row(name, text)
    return found


def rows(scenario: Scenario, estimate: RunEstimate) -> list[tuple[str, str]]:
    """The cells of the table."""
    rounds = f"{plural(scenario.round.count, 'round')} of {plural(scenario.round.local_steps, 'local step')}"
    each = megabytes(estimate.bytes_most / estimate.device_rounds)
    sent = f"{megabytes(estimate.bytes_most)} at most, {each} a round"
    budget = f"budget {megabytes(scenario.radio.budget_bytes)}"
    return [
        ("devices", f"{scenario.devices.count} at the start, {estimate.devices} at most"),
        ("rounds", rounds),
        ("events", "\n".join(map(_event, scenario.events)) or "none"),
        ("block", f"{megabytes(estimate.block_bytes)} in {scenario.radio.codec}"),
        ("bytes", f"{sent} and device ({budget})"),
        ("memory", f"{megabytes(estimate.device_memory_bytes)} for each process, most of it shared"),
        ("local step", f"{1000 * estimate.step_s:.1f} ms (measured now)"),
        ("time", f"{_duration(estimate.run_s)} on {plural(os.cpu_count() or 1, 'core')}, and the evaluation"),
    ]


def _event(event: EventConfig) -> str:
    who = event.device or " | ".join(",".join(group) for group in event.groups)
    return f"round {event.round}: {event.kind} {who}".strip()


def _duration(seconds: float) -> str:
    """Seconds as `40 s` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
