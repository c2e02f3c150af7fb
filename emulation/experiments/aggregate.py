"""Aggregates rows over seeds: means with intervals, paired differences, equivalence, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLES, UNIFORM
from emulation.experiments.statistics import Interval, cluster_means, equivalence_p, holm, interval

MEANS = (
    *(
        "k",
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
    *("recovery_share_bytes", "recovery_share_steps", "cpu_s", "recovery_cpu_s"),
)
EQUIVALENT = ("forget", "auc")
MOST = 0.25  # goal: the largest share of the rounds and of the local steps of the oracle until recovery
DOMINANT = "dominant"


def aggregate(rows: Sequence[Record]) -> list[Record]:
    """One entry for each setting and arm, in the order of the first rows. It is `summary` of results.json.

    Every p is adjusted over the arms of all settings, which are the claims of one experiment (Holm).
    """
    keys = dict.fromkeys((r["setting"], r["arm"]) for r in rows)
    found = [_entry(rows, setting, arm) for setting, arm in keys]
    _adjust(found)
    return found


def _adjust(entries: Sequence[Record]) -> None:
    """Holm over the differences from `uniform`, and over all claims of equivalence to the oracle."""
    gaps = [e["eg_minus_uniform"] for e in entries if e["arm"] != UNIFORM and e["eg_minus_uniform"]]
    for gap, p in zip(gaps, holm([gap["p"] for gap in gaps]), strict=True):
        gap["p"] = p
    claims = [(e["equivalence_p"], name) for e in entries for name in e["equivalence_p"]]
    for (claim, name), p in zip(claims, holm([claim[name] for claim, name in claims]), strict=True):
        claim[name] = p


def adjusted(entries: Sequence[Record], name: str) -> list[Record]:
    """The entries with the p of their intervals `name` adjusted over all of them (Holm)."""
    p = holm([None if entry[name] is None else entry[name]["p"] for entry in entries])
    return [
        entry if entry[name] is None else {**entry, name: {**entry[name], "p": one}}
        for entry, one in zip(entries, p, strict=True)
    ]


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
        "equivalence_p": {} if arm in ORACLES else {n: _equivalence_p(own, n) for n in EQUIVALENT},
    }


def _equivalence_p(own: Sequence[Record], name: str) -> float | None:
    """The larger p of k = 0 and k = K: a claim of equivalence is one of both."""
    both = [equivalence_p(_known(own, f"d_{name}{when}")) for when in ("", "_0")]
    known = [p for p in both if p is not None]
    return max(known) if len(known) == len(both) else None


def _known(rows: Iterable[Record], name: str) -> list[float]:
    return [float(r[name]) for r in rows if r[name] is not None]


def to_record(found: Interval | None) -> Record | None:
    """The interval as JSON."""
    return None if found is None else asdict(found)


def paired_interval(arm: Sequence[Record], other: Sequence[Record], name: str) -> Interval | None:
    """The interval of arm - other, paired by setting and seed, and clustered by seed.

    The settings of a seed share its data and count as one value: their mean.
    """
    return interval(cluster_means(paired_differences(arm, other, name)))


def paired_differences(arm: Sequence[Record], other: Sequence[Record], name: str) -> list[tuple[int, float]]:
    """(seed, arm - other) for each setting and seed that both have."""
    pairs = {(r["setting"], r["seed"]): r[name] for r in other}
    keyed = [(r["seed"], r[name], pairs.get((r["setting"], r["seed"]))) for r in arm]
    return [(seed, a - b) for seed, a, b in keyed if a is not None and b is not None]


# -- verdicts ------------------------------------------------------------------------------------------
def verdicts(rows: Sequence[Record]) -> list[Record]:
    """`dominant` against `uniform` and `proportional` over all settings; then the goal of recovery.

    Whether a policy earns its measurements is decided in constant_arms.py alone.
    """
    found: list[Record] = []
    mine = [r for r in rows if r["arm"] == DOMINANT]
    for other in (UNIFORM, "proportional"):
        theirs = [r for r in rows if r["arm"] == other]
        gap = paired_interval(mine, theirs, "eg")
        if gap is not None:
            found.append({"what": f"{DOMINANT} - {other}", "setting": "all", "eg": to_record(gap)})
    return [*adjusted(found, "eg"), *_recovery_verdicts(rows)]


def _recovery_verdicts(rows: Sequence[Record]) -> list[Record]:
    """For each arm with its own oracle: the shares of that oracle's rounds and local steps until recovery.

    `holds`: both means are at most `MOST`, and all seeds recovered.
    """
    found = []
    for setting, arm in dict.fromkeys((r["setting"], r["arm"]) for r in rows):
        own = rows_of(rows, setting, arm)
        shares = {n: interval(_known(own, f"recovery_share_{n}")) for n in ("rounds", "steps")}
        if arm in ORACLES or None in shares.values():
            continue
        all_recovered = all(r["recovery_rounds"] is not None for r in own)
        found.append(
            {
                "what": f"recovery of {arm}",
                "setting": setting,
                "shares": {name: to_record(share) for name, share in shares.items()},
                "holds": all_recovered and all(s is not None and s.mean <= MOST for s in shares.values()),
            }
        )
    return found
