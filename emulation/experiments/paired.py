"""One row for each setting, arm and seed: an arm compared with `oracle` and `uniform` of the same seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from emulation.analysis.records import Record
from emulation.experiments.arms import ARMS, ORACLE, ORACLES, UNIFORM
from emulation.experiments.statistics import norm_comm, recovery, relative_improvement, tow

COSTS = ("bytes", "steps", "seconds", "cpu_s")
AGAINST_ORACLE = ("forget", "retain", "test", "auc", "tpr")


def paired_rows(measures: Sequence[Record], arms: Collection[str] = ()) -> list[Record]:
    """The rows in the order of the measures. A measure without its `oracle` or `uniform` is left out.

    arms: the arms of the experiment, of which some are derived from others.
    """
    by_key = {(m["setting"], m["seed"], m["arm"]): m for m in with_derived(measures, arms)}
    found = []
    for (setting, seed, _), measured in by_key.items():
        oracle = by_key.get((setting, seed, ORACLE))
        uniform = by_key.get((setting, seed, UNIFORM))
        if oracle is not None and uniform is not None:
            own = by_key.get((setting, seed, oracle_of(measured["arm"])))
            found.append(paired_row(measured, oracle, uniform, own))
    return found


def with_derived(measures: Sequence[Record], arms: Collection[str]) -> list[Record]:
    """The measures, and those of the derived ones among the arms."""
    derived = [(name, ARMS[name].derived) for name in arms if name in ARMS and ARMS[name].derived]
    return [
        *measures,
        *(without_correction(m, name) for name, source in derived for m in measures if m["arm"] == source),
    ]


def without_correction(measured: Record, name: str) -> Record:
    """The measures of an arm that stops right after the event of another one, without costs."""
    start = measured["curve"][0]
    curve = [{**start, **dict.fromkeys(COSTS, 0), "k": point["k"]} for point in measured["curve"]]
    return {**measured, "arm": name, "curve": curve, "worst_loss": None, "decisions": [], "metrics": {}}


def event_gaps(measured: Record, oracle: Record) -> list[tuple[int, float]]:
    """Pairs (k, EG(k)), where EG(k) = L_evt(mean model at k) - L_evt(oracle at its end)."""
    final = float(oracle["curve"][-1]["loss"])
    return [(int(point["k"]), float(point["loss"]) - final) for point in measured["curve"]]


def oracle_of(arm: str) -> str:
    """The oracle with the number of local steps and the optimiser of an arm. That of an oracle is itself."""
    return arm if arm in ORACLES or arm not in ARMS else ARMS[arm].oracle


def paired_row(measured: Record, oracle: Record, uniform: Record, own_oracle: Record | None) -> Record:
    """One row of rows.csv. `d_x`: x minus the x of the oracle. `x_0`: x at k = 0. Other values: at K.

    own_oracle: the oracle of `recovery_costs`; None if it was not run.
    """
    first, last, best = measured["curve"][0], measured["curve"][-1], oracle["curve"][-1]
    eg, eg_uniform = last["loss"] - best["loss"], uniform["curve"][-1]["loss"] - best["loss"]
    uncorrected = uniform["curve"][0]["loss"] - best["loss"]
    worst = measured["worst_loss"]
    return {
        **{key: measured[key] for key in ("setting", "arm", "seed")},
        "revision": measured.get("revision"),
        "k": last["k"],
        "loss": last["loss"],
        "eg": eg,
        "eg_0": first["loss"] - best["loss"],
        "eg_share": eg / uncorrected if uncorrected > 0 else None,
        "worst_gap": None if worst is None else worst - best["loss"],
        "ri_gap": relative_improvement(eg_uniform, eg),
        "ri_loss": relative_improvement(uniform["curve"][-1]["loss"], last["loss"]),
        "norm_comm": norm_comm(last["bytes"], uniform["curve"][-1]["bytes"]),
        "norm_total": _norm_total(last, uniform["curve"][-1]),
        **{name: last[name] for name in (*AGAINST_ORACLE, "fresh", *COSTS)},
        **{f"d_{name}": difference(last[name], best[name]) for name in AGAINST_ORACLE},
        **{f"d_{name}_0": difference(first[name], best[name]) for name in ("forget", "auc")},
        "tow": tow([difference(last[name], best[name]) for name in ("forget", "retain", "test")]),
        **{f"re_emergence_{name}": difference(last[name], first[name]) for name in ("forget", "auc")},
        **recovery_costs(measured, own_oracle),
        **{
            f"{name}_{about}": value
            for name, of in measured.get("metrics", {}).items()
            for about, value in of.items()
        },
    }


def _norm_total(arm: Mapping[str, float], uniform: Mapping[str, float]) -> float | None:
    """The mean of bytes and local steps, each over `uniform`'s. The paper's table has 1.17 for `local-steps`,
    which fits these weights."""
    shares = [norm_comm(arm[cost], uniform[cost]) for cost in ("bytes", "steps")]
    return None if None in shares else fmean(share for share in shares if share is not None)


def difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def recovery_costs(measured: Record, oracle: Record | None) -> Record:
    """The costs until 95 % of the oracle's final retain accuracy, and their shares of the oracle's costs.

    oracle: with the number of local steps and the optimiser of the arm. Its costs count from its first round.
    None: not reached within K, or no such oracle.
    """
    goal = math.inf if oracle is None else float(oracle["curve"][-1]["retain"])
    own = _reached(measured["curve"], goal)
    reference = None if oracle is None else _reached(oracle["curve"], goal)
    found: Record = {}
    for name in ("k", *COSTS):
        value = None if own is None else own[name]
        full = None if reference is None else reference[name]
        found["recovery_rounds" if name == "k" else f"recovery_{name}"] = value
        share = None if value is None or not full else value / full
        found["recovery_share_rounds" if name == "k" else f"recovery_share_{name}"] = share
    return found


def _reached(curve: Sequence[Mapping[str, float]], goal: float) -> Mapping[str, float] | None:
    """The first point of the curve at the goal (statistics.recovery)."""
    k = recovery([int(p["k"]) for p in curve], [p["retain"] for p in curve], goal)
    return next((point for point in curve if point["k"] == k), None)
