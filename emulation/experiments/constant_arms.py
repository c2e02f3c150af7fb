"""Whether a policy earns its measurements: each policy against the best constant arms at no more cost.

A constant arm uses no measurement. The local steps and bytes of a policy lie between those of constant arms.
So each policy is compared with the weighted mean of their gaps at the policy's cost. The best shares are
chosen on the *other* seeds, by a linear program, then compared on the own seed. Where a policy costs less
than every constant arm, the cost of the cheapest one is allowed.

A real arm at that cost may be better or worse than the weighted mean, since the gap is not linear in the
steps. `early-max-steps` is a real arm between `uniform` and `max-steps`: a table without it says less.

`python -m emulation.experiments.constant_arms FILE` prints the table again from a published rows.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import linprog

from emulation.analysis.records import Record
from emulation.experiments.aggregate import adjusted, rows_of, to_record
from emulation.experiments.arms import CONSTANT_ARMS, POLICIES, SINGLE_ACTIONS, UNIFORM
from emulation.experiments.statistics import interval
from emulation.experiments.tables import DASH, number, p_of, spread, table
from peers.errors import InputError

# A constant arm may cost up to this factor of the policy's. This favours the constant arm: a policy that
# equals `uniform` has a small positive difference. So p supports a success, and not that a policy is worse.
SAME = 1.02
LEVEL = 0.05  # of p after the adjustment
LEAST_SHARE = 0.01  # of the rounds; a table leaves out smaller shares
POOLED = "all"
COSTS = ("steps", "seconds", "cpu_s", "bytes")
Shares = Mapping[str, float]  # of the rounds, by constant arm; their sum is 1


class Paired(NamedTuple):
    """One seed of a policy beside the constant arms that the other seeds chose.

    costs: the policy's over those of the constant arms, by COSTS.
    """

    difference: float
    chosen: Shares
    costs: Mapping[str, float]


def against_constants(rows: Sequence[Record]) -> list[Record]:
    """For each setting and policy that is not constant: the paired difference to the best constant arms.

    `success`: the difference of event gaps is below 0, with p < 0.05 after Holm's adjustment over all lines.
    `steps`, `seconds`, `cpu_s`, `bytes`: the policy's over those of the constant arms. `chosen`: the mean
    share of each constant arm over the seeds. The setting `all` pools several settings: the value of a seed
    is its mean over them.
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
    pooled = [to_comparison(POOLED, arm, pool(of)) for arm, of in arms.items() if len(of) > 1]
    return judged(single + pooled)


def judged(found: Sequence[Record]) -> list[Record]:
    """The comparisons with adjusted p (Holm) and verdicts. All of them are claims of one table."""
    return [
        {**one, "success": _is_success(one["eg_minus_constant"])}
        for one in adjusted(found, "eg_minus_constant")
    ]


def _is_success(gap: Record) -> bool:
    return bool(gap["p"] is not None and gap["mean"] < 0 and gap["p"] < LEVEL)


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


def compare_seed(mine: Record, best: Shares, seen: Mapping[str, Record]) -> Paired:
    """seen: the constant arms' rows of the same seed, by arm."""

    def mixed(name: str) -> float:
        return sum(share * float(seen[arm][name]) for arm, share in best.items())

    spent = {cost: mixed(cost) for cost in COSTS}
    costs = {cost: float(mine[cost]) / value if value else 1.0 for cost, value in spent.items()}
    return Paired(float(mine["eg"]) - mixed("eg"), best, costs)


def pool(of: Mapping[str, Mapping[int, Paired]]) -> list[list[Paired]]:
    """The pairs of each seed that all settings have. They share the seed's data and are no separate draws."""
    common = [seed for seed in next(iter(of.values())) if all(seed in seen for seen in of.values())]
    return [[seen[seed] for seen in of.values()] for seed in common]


def to_comparison(setting: str, arm: str, pairs: Sequence[Sequence[Paired]]) -> Record:
    """pairs: those of each seed, one for each setting."""
    gap = interval([fmean(pair.difference for pair in of_seed) for of_seed in pairs])
    chosen = [pair.chosen for of_seed in pairs for pair in of_seed]
    names = dict.fromkeys(name for shares in chosen for name in shares)
    return {
        "setting": setting,
        "arm": arm,
        "eg_minus_constant": to_record(gap),
        "chosen": {name: fmean(shares.get(name, 0.0) for shares in chosen) for name in names},
        **{cost: fmean(pair.costs[cost] for of_seed in pairs for pair in of_seed) for cost in COSTS},
    }


def best_constant(constant: Mapping[str, Sequence[Record]], policy: Sequence[Record]) -> Shares:
    """The shares of constant arms with the smallest mean gap, at no more than SAME times the policy's mean
    steps and bytes, or those of the cheapest arm; the arm with the fewest steps if no shares cost so little.
    """
    names = list(constant)
    costs = np.array([[_mean(constant[name], cost) for name in names] for cost in ("steps", "bytes")])
    spent = np.array([_mean(policy, cost) for cost in ("steps", "bytes")])
    limits = SAME * np.maximum(spent, costs.min(axis=1))
    gaps = [_mean(constant[name], "eg") for name in names]
    # Steps and bytes differ by orders of magnitude, so each is divided by its limit.
    found = linprog(gaps, costs / limits[:, None], [1.0, 1.0], np.ones((1, len(names))), [1.0])
    if not found.success:
        return {names[int(costs[0].argmin())]: 1.0}
    return {name: float(share) for name, share in zip(names, found.x, strict=True) if share > 0}


def _mean(rows: Iterable[Record], name: str) -> float:
    return fmean(float(row[name]) for row in rows)


def constants_table(found: Sequence[Record]) -> Table:
    """One line for each setting and policy."""
    made = table("policies against the best constant arms, chosen on the other seeds")
    for head in (
        "setting",
        "policy",
        "gap −\nconstant",
        "p",
        "steps",
        "s",
        "CPU s",
        "bytes",
        "constant arms",
    ):
        left = head in ("setting", "policy", "constant arms")
        made.add_column(head, justify="left" if left else "right", no_wrap=head == "policy", overflow="fold")
    for one in found:
        costs = [f"{one[cost]:.2f}" for cost in COSTS]
        largest = sorted(one["chosen"].items(), key=lambda entry: -entry[1])
        chosen = ", ".join(f"{share:.0%} {name}" for name, share in largest if share >= LEAST_SHARE)
        gap = one["eg_minus_constant"]
        made.add_row(
            one["setting"], one["arm"], spread(gap), p_of(gap) + " *" * one["success"], *costs, chosen
        )
    made.caption = (
        "\\[low, high]: 95 % t interval, not adjusted; p: adjusted over all lines (Holm); *: success, below "
        "0 with p < 0.05; constant arms may cost 2 % more, so p says little where the difference is above 0; "
        "steps, s, CPU s, bytes: of the policy, over those of the constant arms; "
        "constant arms: mean shares of the rounds; all: a seed's mean over the settings"
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


def read_rows(file: Path) -> list[Record]:
    """The lines of a rows.csv, with numbers where `against_constants` needs them. Raises InputError."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            found = csv.DictReader(lines)
            missing = {"setting", "arm", "seed", "eg", *COSTS} - {*(found.fieldnames or ())}
            if missing:
                raise ValueError(f"no column {min(missing)}")
            return [
                {**row, "seed": int(row["seed"]), **{n: float(row[n]) for n in ("eg", *COSTS)}}
                for row in found
            ]
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {error}; allowed: rows.csv of an experiment") from None


def main() -> None:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m emulation.experiments.constant_arms", description=__doc__
    )
    parser.add_argument("file", type=Path, help="a published rows.csv, such as docs/data/regimes-compact.csv")
    try:
        Console().print(constants_table(against_constants(read_rows(parser.parse_args().file))))
    except InputError as error:
        print(f"unweft: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
