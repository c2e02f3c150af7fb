"""Whether a setting is the regime that its name says, and what `dominant` chose there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from emulation.analysis.records import Record
from emulation.experiments.arms import UNIFORM

RESIDUALS = {"local": "R_loc", "consensus": "R_con", "heterogeneity": "R_het"}  # in a decision's record
DOMINANT = "dominant"


def evidence(measures: Sequence[Record]) -> list[Record]:
    """By setting: shares of the residuals at the first diagnosis, mean over seeds; `dominant`'s choices.

    Every arm that measures at all measures the same at first: what it does begins with the decision. So one
    arm tells: `dominant` where there is one.
    """
    found = []
    for setting in dict.fromkeys(m["setting"] for m in measures):
        own = [m for m in measures if m["setting"] == setting]
        firsts = [m["decisions"][0] for m in _one_arm(own)]
        if not firsts:
            continue
        shares = [residual_shares(first["residuals"]) for first in firsts]
        mean = {name: fmean(share[name] for share in shares) for name in RESIDUALS.values()}
        chosen = choices(d["reason"] for m in own if m["arm"] == DOMINANT for d in m["decisions"])
        found.append({"setting": setting, "shares": mean, "choices": chosen})
    return found


def _one_arm(measures: Sequence[Record]) -> list[Record]:
    telling = [m for m in measures if m["decisions"]]
    names = [m["arm"] for m in telling if m["arm"] != UNIFORM]
    arm = DOMINANT if DOMINANT in names else next(iter(names), None)
    return [m for m in telling if m["arm"] == arm]


def residual_shares(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of R_loc, R_con and R_het in their sum, each summed over the layer groups; 0 each if there is none."""
    sums = {name: sum(group[key] for group in groups.values()) for key, name in RESIDUALS.items()}
    total = sum(sums.values())
    return {name: value / total if total else 0.0 for name, value in sums.items()}


def choices(reasons: Iterable[str]) -> dict[str, int]:
    """How often each kind of action was decided, by the first move that a reason names; most often first."""
    words = [reason.rpartition("-> ")[2].split() for reason in reasons]
    return dict(Counter(word[0] if word else "stay" for word in words).most_common())
