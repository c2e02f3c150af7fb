"""Checks of `privacy`: the package, and all that would publish the data of a device without noise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from coordinator_free.correction.policies import SCHEDULES
from emulation.scenario.conflicts import Conflict, Problems, conflict_problems
from emulation.scenario.schema import Scenario
from peers.privacy_config import PrivacyConfig


def privacy_problems(scenario: Scenario) -> Problems:
    """A pair for each problem: the key path, and a text with the value and the allowed values."""
    privacy = scenario.privacy
    if not privacy.on:
        if privacy != PrivacyConfig():
            yield (
                "privacy",
                "has no epsilon and no noise, so it is off; allowed: one of them, or no key of it",
            )
        return
    from peers.learning import privacy_account

    missing = privacy_account.missing_package()
    if missing is not None:
        yield "privacy.epsilon" if privacy.epsilon else "privacy.noise", missing
    yield from conflict_problems(_unaccounted(scenario), "privacy", "no privacy")
    yield from _resumed_problems(scenario)


def _unaccounted(scenario: Scenario) -> Iterable[Conflict]:
    correction = scenario.correction
    fisher = "whose steps have the eigenbasis of the own data, without noise"
    schedules = f"one of {', '.join(sorted(SCHEDULES))}"
    measures = correction.policy if correction.policy not in SCHEDULES else ""
    yield "correction.policy", measures, "and sends sketches of gradients without noise", schedules
    yield "correction.fisher", correction.fisher, fisher, "false"
    yield "train.fisher_every", scenario.train.fisher_every, fisher, "0"
    refit = "which fits the own block to the own data without noise"
    yield "correction.refit", correction.refit, refit, "0"
    yield "correction.projection", correction.projection, refit, "false"
    ewc = "which weighs the own block by its Fisher information without noise"
    yield "correction.ewc", correction.ewc, ewc, "0"
    leak = "which moves the blocks of others without noise"
    yield "isolation.leak", scenario.isolation.leak, leak, "0"
    counts = "which shows how many images of each class the device has"
    yield "train.logit_adjustment", scenario.train.logit_adjustment, counts, "0"


def _resumed_problems(scenario: Scenario) -> Problems:
    """The blocks of a checkpoint have spent what the accounts of that run say."""
    from peers.learning.privacy_account import account_path
    from peers.storage import checkpoint

    resume = scenario.checkpoint.resume
    if resume is None:
        return
    for device in scenario.all_devices:
        known = account_path(Path(resume), device).is_file()
        if checkpoint.path_of(Path(resume), device).is_file() and not known:
            yield (
                "checkpoint.resume",
                f"{resume!r} has no account of the privacy that {device} has spent; allowed: the folder of a"
                " run with privacy, or no privacy",
            )
            return
