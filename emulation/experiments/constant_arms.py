"""Whether a policy earns its measurements: each policy against the best constant arm at no more cost.

A constant arm uses no measurement. The local steps of a policy lie between those of two constant arms. A
reader could mix these two in time and would get about the mean of their gaps, weighted so that the steps are
those of the policy. The best such pair is chosen on the *other* seeds, then compared on the own seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from statistics import fmean
from typing import NamedTuple

from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.aggregate import rows_of, to_record
from emulation.experiments.arms import CONSTANT_ARMS, POLICIES, SINGLE_ACTIONS, UNIFORM
from emulation.experiments.statistics import interval
from emulation.experiments.tables import DASH, number, spread, table

SAME = 1.02  # a constant arm may cost up to this factor of the policy's; the error favours the constant arm
LEAST_SHARE = 0.02  # of the rounds; a smaller share is no mixture
POOLED = "all"
COSTS = ("steps", "seconds", "bytes")


class Mixed(NamedTuple):
    """The share `share` of the rounds as constant arm `first`, the others as `second`."""

    first: str
    second: str
    share: float

    @property
    def name(self) -> str:
        if self.first == self.second:
            return self.first
        return f"{self.share:.0%} {self.first}, {1 - self.share:.0%} {self.second}"

    def value(self, seen: Mapping[str, Record], name: str) -> float:
        """The weighted mean of a column, from the rows of one seed by arm."""
        return self.share * float(seen[self.first][name]) + (1 - self.share) * float(seen[self.second][name])


class Paired(NamedTuple):
    """One seed of a policy beside the constant arm that the other seeds chose.

    costs: the policy's over those of the constant arm, by COSTS.
    """

    difference: float
    chosen: str
    costs: Mapping[str, float]


def against_constants(rows: Sequence[Record]) -> list[Record]:
    """For each setting and policy that is not constant: the paired difference to the best constant arm.

    `success`: the interval of the difference of event gaps lies below 0. `steps`, `seconds`, `bytes`: the
    policy's over those of the constant arm. `chosen`: the constant arms, by number of seeds that chose them.
    The setting `all` pools several settings: the value of a seed is its mean over them.
    """
    keys = dict.fromkeys((r["setting"], r["arm"]) for r in rows)
    arms: dict[str, dict[str, dict[int, Paired]]] = {}
    for setting, arm in keys:
        if arm in POLICIES and arm not in CONSTANT_ARMS and (seen := compare_seeds(rows, setting, arm)):
            arms.setdefault(arm, {})[setting] = seen
    settings = dict.fromkeys(setting for setting, _ in keys)
    single = [
        to_comparison(setting, arm, [[pair] for pair in of[setting].values()])
        for setting in settings
        for arm, of in arms.items()
        if setting in of
    ]
    return single + [to_comparison(POOLED, arm, pool(of)) for arm, of in arms.items() if len(of) > 1]


def compare_seeds(rows: Sequence[Record], setting: str, arm: str) -> dict[int, Paired]:
    """A policy in one setting, by seed. Empty with fewer than two seeds or without constant arms."""
    mine = {r["seed"]: r for r in rows_of(rows, setting, arm)}
    constant = {name: {r["seed"]: r for r in rows_of(rows, setting, name)} for name in CONSTANT_ARMS}
    seeds = [s for s in mine if any(s in of for of in constant.values())]
    present = [name for name, of in constant.items() if of.keys() >= set(seeds)]
    if len(seeds) < 2 or not present:
        return {}
    found = {}
    for seed in seeds:
        others = [s for s in seeds if s != seed]
        best = best_constant(
            {n: [constant[n][s] for s in others] for n in present}, [mine[s] for s in others]
        )
        found[seed] = compare_seed(mine[seed], best, {name: constant[name][seed] for name in present})
    return found


def compare_seed(mine: Record, best: Mixed, seen: Mapping[str, Record]) -> Paired:
    """seen: the constant arms' rows of the same seed, by arm."""
    spent = {cost: best.value(seen, cost) for cost in COSTS}
    costs = {cost: float(mine[cost]) / value if value else 1.0 for cost, value in spent.items()}
    return Paired(float(mine["eg"]) - best.value(seen, "eg"), best.name, costs)


def pool(of: Mapping[str, Mapping[int, Paired]]) -> list[list[Paired]]:
    """The pairs of each seed that all settings have. They share the seed's data and are no separate draws."""
    common = [seed for seed in next(iter(of.values())) if all(seed in seen for seen in of.values())]
    return [[seen[seed] for seen in of.values()] for seed in common]


def to_comparison(setting: str, arm: str, pairs: Sequence[Sequence[Paired]]) -> Record:
    """pairs: those of each seed, one for each setting."""
    gap = interval([fmean(pair.difference for pair in of_seed) for of_seed in pairs])
    names = [pair.chosen for of_seed in pairs for pair in of_seed]
    return {
        "setting": setting,
        "arm": arm,
        "eg_minus_constant": to_record(gap),
        "success": gap is not None and gap.high is not None and gap.high < 0,
        "chosen": {name: names.count(name) for name in dict.fromkeys(names)},
        **{cost: fmean(pair.costs[cost] for of_seed in pairs for pair in of_seed) for cost in COSTS},
    }


def best_constant(constant: Mapping[str, Sequence[Record]], policy: Sequence[Record]) -> Mixed:
    """The constant arm, or pair of them, with the smallest mean gap at no more mean steps and bytes than the
    policy's. If all constant arms cost more, the one with the fewest steps."""
    steps = {name: _mean(rows, "steps") for name, rows in constant.items()}
    sent = {name: _mean(rows, "bytes") for name, rows in constant.items()}
    gaps = {name: _mean(rows, "eg") for name, rows in constant.items()}
    limit, most = SAME * _mean(policy, "steps"), SAME * _mean(policy, "bytes")
    options = [
        mixed
        for pair in combinations_with_replacement(constant, 2)
        if (mixed := _within(*pair, steps, limit)) is not None
        and mixed.share * sent[mixed.first] + (1 - mixed.share) * sent[mixed.second] <= most
    ]
    cheapest = min(constant, key=lambda name: steps[name])
    return min(
        options,
        key=lambda m: m.share * gaps[m.first] + (1 - m.share) * gaps[m.second],
        default=Mixed(cheapest, cheapest, 1.0),
    )


def _within(a: str, b: str, steps: Mapping[str, float], limit: float) -> Mixed | None:
    """The mixture of two arms with as many steps of the dearer one as `limit` allows."""
    low, high = sorted((a, b), key=lambda name: steps[name])
    if steps[high] <= limit:
        return Mixed(high, high, 1.0) if a == b else None  # each of the two alone is an option
    if a == b or steps[low] > limit:
        return None
    share = (limit - steps[low]) / (steps[high] - steps[low])
    return Mixed(high, low, share) if share > LEAST_SHARE else None


def _mean(rows: Iterable[Record], name: str) -> float:
    return fmean(float(row[name]) for row in rows)


def constants_table(found: Sequence[Record]) -> Table:
    """One line for each setting and policy."""
    made = table("policies against the best constant arm, chosen on the other seeds")
    for head in (
        "setting",
        "policy",
        "gap − constant's",
        "success",
        "steps",
        "seconds",
        "bytes",
        "constant arm",
    ):
        left = head in ("setting", "policy", "constant arm")
        made.add_column(head, justify="left" if left else "right", no_wrap=head == "policy")
    for one in found:
        costs = [f"{one[cost]:.2f}" for cost in COSTS]
        several = one["setting"] == POOLED
        chosen = DASH if several else ", ".join(f"{name} ({count})" for name, count in one["chosen"].items())
        verdict = "yes" if one["success"] else "no"
        made.add_row(one["setting"], one["arm"], spread(one["eg_minus_constant"]), verdict, *costs, chosen)
    made.caption = (
        "steps, seconds, bytes: of the policy, over those of the constant arm; "
        "all: a seed's mean over the settings"
    )
    return made


def best_of_each(summary: Sequence[Record], evidence: Sequence[Record]) -> Table:
    """For each setting: shares of residuals, uniform, best constant arm, best single action, `dominant`."""
    made = table("regimes: gap, with local steps, seconds and MB of the survivors")
    for head in ("setting", "R_loc, R_con, R_het", "arm", "gap", "steps", "seconds", "MB"):
        made.add_column(
            head, justify="left" if head in ("setting", "arm") else "right", no_wrap=head == "arm"
        )
    shares = {e["setting"]: e["shares"] for e in evidence}
    for setting in dict.fromkeys(e["setting"] for e in summary):
        entries = {e["arm"]: e for e in summary if e["setting"] == setting}
        parts = "/".join(f"{100 * share:.0f}" for share in shares.get(setting, {}).values()) or DASH
        chosen = [UNIFORM, *_best(entries, CONSTANT_ARMS), *_best(entries, SINGLE_ACTIONS), "dominant"]
        for arm in dict.fromkeys(name for name in chosen if name in entries):
            e = entries[arm]
            megabytes = DASH if e["bytes"] is None else f"{e['bytes']['mean'] / 1e6:.1f}"
            costs = [number(e["steps"], 0), number(e["seconds"], 1), megabytes]
            made.add_row(setting, parts, arm, spread(e["eg"], " "), *costs)
            setting, parts = "", ""
    return made


def _best(entries: Mapping[str, Record], names: Iterable[str]) -> list[str]:
    """The name with the smallest mean gap, in a list; an empty list if there is none."""
    present = [name for name in names if name in entries]
    return [min(present, key=lambda name: float(entries[name]["eg"]["mean"]))] if present else []
