"""The probe period of a run on one machine: longer where many devices share a core.

A device that waits for a core answers late. With many devices a core, live devices are then suspected. Each
suspicion and its refutation reach all devices, so the load grows, and live devices are taken for dead.
"""

from __future__ import annotations

import os

from emulation.scenario.schema import Scenario
from peers.config import MembershipConfig

DEVICES_A_CORE = 8  # with more of them the period grows in proportion


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probe_s(devices: int, cores_: int) -> float:
    """The probe period in seconds of so many devices on so many cores."""
    return float(MembershipConfig().probe_s * max(1.0, devices / (DEVICES_A_CORE * cores_)))


def fitted(scenario: Scenario, cores_: int) -> Scenario:
    """The scenario with the probe period for this machine, unless it sets one. In virtual time: unchanged."""
    set_ = "membership" in scenario.model_fields_set and "probe_s" in scenario.membership.model_fields_set
    period_s = probe_s(scenario.devices.count, cores_)
    if set_ or scenario.clock == "virtual" or period_s == scenario.membership.probe_s:
        return scenario
    membership = scenario.membership.model_copy(update={"probe_s": period_s})
    return scenario.model_copy(update={"membership": membership})


def note(scenario: Scenario, before: Scenario, cores_: int) -> str:
    """What to tell the user about a scenario that `fitted` has changed."""
    return (
        f"membership.probe_s: {scenario.membership.probe_s:g} s in place of {before.membership.probe_s:g} s, "
        f"because {scenario.devices.count} devices share {cores_} cores; a crash is found later"
    )
