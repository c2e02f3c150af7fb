"""`--set` of an experiment: keys of the scenario that differ in all settings, for instance another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from emulation.experiments.catalogue import Experiment
from emulation.scenario.loading import assignments
from peers.errors import InputError

# The experiment decides these itself: whole sections, or keys of a section.
OWN = frozenset(
    (
        "checkpoint",
        "churn",
        "devices",
        "event",
        "eval.every",
        "eval.devices",
        "correction.rounds",
        "correction.policy",
        "round.count",
    )
)


def parse(texts: Sequence[str]) -> dict[str, object]:
    """Key path "section.key" -> value. Raises InputError for another path or a key of OWN."""
    found = assignments(texts)
    for path in found:
        section, _, key = path.partition(".")
        if "." in key:
            raise InputError(
                f"--set {path}: a part of a key; allowed: the whole key, for instance "
                "'adapter.rank={early = 4, mid = 8, late = 8}'"
            )
        if not key or section in OWN or path in OWN:
            raise InputError(
                f"--set {path}: the experiment decides it; allowed: section.key, for instance model.name or "
                f"data.persons, but none of {', '.join(sorted(OWN))}"
            )
    return found


def changed(experiment: Experiment, changes: Mapping[str, object]) -> Experiment:
    """The experiment with these values in all settings. The changes of an arm go before them."""
    settings = (replace(s, changes={**s.changes, **changes}) for s in experiment.settings)
    return replace(experiment, settings=tuple(settings))
