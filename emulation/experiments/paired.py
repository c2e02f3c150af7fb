"""One row for each setting, arm and seed: an arm beside the oracle and `uniform` of the same seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from emulation.analysis.records import Record
from emulation.experiments.arms import NONE, ORACLE, UNIFORM
from emulation.experiments.statistics import norm_comm, recovery, relative_improvement, tow

COSTS = ("bytes", "steps", "seconds")
AGAINST_ORACLE = ("forget", "retain", "test", "auc", "tpr")


def rows(measures: Sequence[Record], with_none: bool) -> list[Record]:
    """In the order of the measures; those without their oracle or `uniform` are left out: nothing to say."""
    by_key = {(m["setting"], m["seed"], m["arm"]): m for m in [*measures, *_nones(measures, with_none)]}
    found = []
    for (setting, seed, _), measured in by_key.items():
        oracle = by_key.get((setting, seed, ORACLE))
        uniform = by_key.get((setting, seed, UNIFORM))
        if oracle is not None and uniform is not None:
            found.append(row(measured, oracle, uniform))
    return found


def _nones(measures: Iterable[Record], wanted: bool) -> list[Record]:
    return [none_of(m) for m in measures if wanted and m["arm"] == UNIFORM]


def none_of(uniform: Record) -> Record:
    """No correction: right after the deletion, for ever and at no cost."""
    start = uniform["curve"][0]
    curve = [{**start, **dict.fromkeys(COSTS, 0), "k": point["k"]} for point in uniform["curve"]]
    return {**uniform, "arm": NONE, "curve": curve, "worst_loss": None, "decisions": []}


def gaps(measured: Record, oracle: Record) -> list[tuple[int, float]]:
    """EG(k) = L_evt(mean model at k) - L_evt(oracle at its end), by k."""
    final = float(oracle["curve"][-1]["loss"])
    return [(int(point["k"]), float(point["loss"]) - final) for point in measured["curve"]]


def row(measured: Record, oracle: Record, uniform: Record) -> Record:
    """All that the tables are made of. `d_x`: x minus the oracle's; `x_0`: at k = 0, everything else at K."""
    first, last, best = measured["curve"][0], measured["curve"][-1], oracle["curve"][-1]
    eg, eg_uniform = last["loss"] - best["loss"], uniform["curve"][-1]["loss"] - best["loss"]
    uncorrected = uniform["curve"][0]["loss"] - best["loss"]
    worst = measured["worst_loss"]
    return {
        **{key: measured[key] for key in ("setting", "arm", "seed")},
        "k": last["k"],
        "loss": last["loss"],
        "eg": eg,
        "eg_0": first["loss"] - best["loss"],
        "eg_share": eg / uncorrected if uncorrected > 0 else None,
        "worst_gap": None if worst is None else worst - best["loss"],
        "ri_gap": relative_improvement(eg_uniform, eg),
        "ri_loss": relative_improvement(uniform["curve"][-1]["loss"], last["loss"]),
        "norm_comm": norm_comm(last["bytes"], uniform["curve"][-1]["bytes"]),
        **{name: last[name] for name in (*AGAINST_ORACLE, "fresh", *COSTS)},
        **{f"d_{name}": difference(last[name], best[name]) for name in AGAINST_ORACLE},
        **{f"d_{name}_0": difference(first[name], best[name]) for name in ("forget", "auc")},
        "tow": tow([last[name] - best[name] for name in ("forget", "retain", "test")]),
        **{f"re_emergence_{name}": difference(last[name], first[name]) for name in ("forget", "auc")},
        **recovered(measured, oracle),
    }


def difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def recovered(measured: Record, oracle: Record) -> Record:
    """What it took to 95 % of the oracle's final retain accuracy, and as a share of what the oracle took.

    None: not reached within K. The oracle's costs count from its first round.
    """
    goal = float(oracle["curve"][-1]["retain"])
    mine, its = _reached(measured["curve"], goal), _reached(oracle["curve"], goal)
    found: Record = {}
    for name in ("k", *COSTS):
        value = None if mine is None else mine[name]
        full = None if its is None else its[name]
        found["recovery_rounds" if name == "k" else f"recovery_{name}"] = value
        share = None if value is None or not full else value / full
        found["recovery_share_rounds" if name == "k" else f"recovery_share_{name}"] = share
    return found


def _reached(curve: Sequence[Mapping[str, float]], goal: float) -> Mapping[str, float] | None:
    k = recovery([int(p["k"]) for p in curve], [p["retain"] for p in curve], goal)
    return next((point for point in curve if point["k"] == k), None)
