"""Aggregates rows over seeds: means with intervals, paired differences, equivalence, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import fmean

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLE, POLICIES, SINGLE_ACTIONS, UNIFORM
from emulation.experiments.statistics import Interval, equivalence_p, interval

MEANS = (
    *(
        "eg",
        "eg_0",
        "eg_share",
        "worst_gap",
        "ri_gap",
        "ri_loss",
        "norm_comm",
        "norm_total",
        "forget",
        "retain",
        "test",
    ),
    *("fresh", "auc", "tpr", "tow", "d_forget", "d_retain", "d_test", "d_auc", "d_tpr", "d_forget_0"),
    *("d_auc_0", "re_emergence_forget", "re_emergence_auc", "bytes", "steps", "seconds", "recovery_rounds"),
    *("recovery_bytes", "recovery_steps", "recovery_seconds", "recovery_share_rounds"),
    "recovery_share_bytes",
)
EQUIVALENT = ("d_forget_0", "d_forget", "d_auc_0", "d_auc")
DOMINANT = "dominant"


def aggregate(rows: Sequence[Record]) -> list[Record]:
    """One entry for each setting and arm, in the order of the first rows. It is `summary` of results.json."""
    keys = dict.fromkeys((r["setting"], r["arm"]) for r in rows)
    return [_entry(rows, setting, arm) for setting, arm in keys]


def rows_of(rows: Iterable[Record], setting: str, arm: str) -> list[Record]:
    return [r for r in rows if r["setting"] == setting and r["arm"] == arm]


def _entry(rows: Sequence[Record], setting: str, arm: str) -> Record:
    own = rows_of(rows, setting, arm)
    return {
        "setting": setting,
        "arm": arm,
        "seeds": [r["seed"] for r in own],
        **{name: to_record(interval(_known(own, name))) for name in MEANS},
        # The recovery means are over the seeds that recovered. This is their number.
        "recovered": sum(r["recovery_rounds"] is not None for r in own),
        "eg_minus_uniform": to_record(paired_interval(own, rows_of(rows, setting, UNIFORM), "eg")),
        "equivalence_p": {} if arm == ORACLE else {n: equivalence_p(_known(own, n)) for n in EQUIVALENT},
    }


def _known(rows: Iterable[Record], name: str) -> list[float]:
    return [float(r[name]) for r in rows if r[name] is not None]


def to_record(found: Interval | None) -> Record | None:
    """The interval as JSON."""
    return None if found is None else asdict(found)


def paired_interval(arm: Sequence[Record], other: Sequence[Record], name: str) -> Interval | None:
    """The interval of arm - other, paired by setting and seed."""
    return interval(paired_differences(arm, other, name))


def paired_differences(arm: Sequence[Record], other: Sequence[Record], name: str) -> list[float]:
    """arm - other for each setting and seed that both have."""
    pairs = {(r["setting"], r["seed"]): r[name] for r in other}
    keyed = [(r[name], pairs.get((r["setting"], r["seed"]))) for r in arm]
    return [a - b for a, b in keyed if a is not None and b is not None]


# -- verdicts ------------------------------------------------------------------------------------------
def verdicts(rows: Sequence[Record]) -> list[Record]:
    """For each setting: the best single action, and `dominant` against the other policies.

    Then `dominant` against `uniform` and `proportional` over all settings.
    """
    settings = list(dict.fromkeys(r["setting"] for r in rows))
    found = [
        v
        for setting in settings
        for v in (_best_single_action(rows, setting), _dominant_verdict(rows, setting))
        if v
    ]
    mine = [r for r in rows if r["arm"] == DOMINANT]
    for other in (UNIFORM, "proportional"):
        theirs = [r for r in rows if r["arm"] == other]
        gap = paired_interval(mine, theirs, "eg")
        if gap is not None:
            found.append({"what": f"{DOMINANT} - {other}", "setting": "all", "eg": to_record(gap)})
    return found


def _ranked(rows: Sequence[Record], setting: str, arms: Callable[[str], bool]) -> list[str]:
    """The arms of a setting by mean event gap at K, the smallest first."""
    names = dict.fromkeys(r["arm"] for r in rows if r["setting"] == setting and arms(r["arm"]))
    return sorted(names, key=lambda arm: fmean(r["eg"] for r in rows_of(rows, setting, arm)))


def _best_single_action(rows: Sequence[Record], setting: str) -> Record | None:
    ranked = _ranked(rows, setting, lambda arm: arm in SINGLE_ACTIONS)
    if len(ranked) < 2:
        return None
    best, second = (rows_of(rows, setting, arm) for arm in ranked[:2])
    what = f"best single action {ranked[0]} - runner-up {ranked[1]}"
    return {"what": what, "setting": setting, "eg": to_record(paired_interval(best, second, "eg"))}


def _dominant_verdict(rows: Sequence[Record], setting: str) -> Record | None:
    """`dominant` against the best other policy. `allowed`: the larger of 0.01 and 5 % of its gap."""
    mine = rows_of(rows, setting, DOMINANT)
    ranked = _ranked(rows, setting, lambda arm: arm in POLICIES and arm != DOMINANT)
    if not mine or not ranked:
        return None
    best = rows_of(rows, setting, ranked[0])
    excess = paired_interval(mine, best, "eg")
    allowed = max(0.05 * abs(fmean(r["eg"] for r in best)), 0.01)
    no_more_bytes = all(share <= 1.0 for share in _known(mine, "norm_comm"))
    return {
        "what": f"{DOMINANT} - best other policy {ranked[0]}",
        "setting": setting,
        "eg": to_record(excess),
        "allowed": allowed,
        "holds": excess is not None and excess.mean <= allowed and no_more_bytes,
    }
