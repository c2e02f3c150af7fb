"""Checks that a setting is in the regime of its name, and counts the choices of `dominant`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from emulation.analysis.records import Record
from emulation.experiments.arms import UNIFORM

RESIDUALS = {"local": "R_loc", "consensus": "R_con", "heterogeneity": "R_het"}  # in a decision's record
DOMINANT = "dominant"


def regime_evidence(measures: Sequence[Record]) -> list[Record]:
    """One entry for each setting: mean shares of the residuals at the first diagnosis, choices of `dominant`.

    The first diagnosis is before the first decision, so it is the same in all arms that measure. It is read
    from one arm, `dominant` if there is one.
    """
    found = []
    for setting in dict.fromkeys(m["setting"] for m in measures):
        own = [m for m in measures if m["setting"] == setting]
        firsts = first_decisions(own)
        if not firsts:
            continue
        shares = [residual_shares(first["residuals"]) for first in firsts]
        mean = {name: fmean(share[name] for share in shares) for name in RESIDUALS.values()}
        chosen = count_choices(d["reason"] for m in own if m["arm"] == DOMINANT for d in m["decisions"])
        found.append({"setting": setting, "shares": mean, "choices": chosen})
    return found


def first_decisions(measures: Sequence[Record]) -> list[Record]:
    """The first decision of each seed in one setting, from the runs of one arm. Empty without a diagnosis."""
    return [m["decisions"][0] for m in _diagnosed_arm(measures)]


def _diagnosed_arm(measures: Sequence[Record]) -> list[Record]:
    diagnosed = [m for m in measures if m["decisions"]]
    names = [m["arm"] for m in diagnosed if m["arm"] != UNIFORM]
    arm = DOMINANT if DOMINANT in names else next(iter(names), None)
    return [m for m in diagnosed if m["arm"] == arm]


def residual_shares(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The shares of R_loc, R_con and R_het in their sum, over all groups. All are 0 if the sum is 0."""
    sums = {name: sum(group[key] for group in groups.values()) for key, name in RESIDUALS.items()}
    total = sum(sums.values())
    return {name: value / total if total else 0.0 for name, value in sums.items()}


def count_choices(reasons: Iterable[str]) -> dict[str, int]:
    """Kind of action -> number of decisions, most frequent first. The kind is the first move of a reason."""
    words = [reason.rpartition("-> ")[2].split() for reason in reasons]
    return dict(Counter(word[0] if word else "stay" for word in words).most_common())
