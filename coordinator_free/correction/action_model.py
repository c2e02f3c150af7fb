"""The corrective actions: the setting that each changes, its predicted effect and its cost (method 7).

| action                    | residual                           | predicted factor                          |
|---------------------------|------------------------------------|-------------------------------------------|
| local steps n0 -> n       | R_loc, but raises R_con and R_het  | (1 - eta mu)^2 a step; (n / n0)^2         |
| proximal damping lambda   | R_het and drift                    | (1 + eta lambda)^(-2n); R_loc is slower   |
| topology, rho0 -> rho     | R_con                              | (rho / rho0)^2                            |
| mixing strength gamma     | R_con, as a denser graph; no cost  | (rho / rho0)^2                            |
| exchange every H-th round | R_con grows with H n steps between | (H / H0)^2; bytes / H                     |

rho is that of (1 - gamma) I + gamma W.

Isolated blocks (ours, docs/correction.md): no step of one device undoes a step of another. The gradients of a
device's own loss then cause a bias, R_het, that only damping changes, and steps do not. Different copies slow
the mean model down (`progress`) and add R_con to its loss. So R_loc and R_con remain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from coordinator_free.correction.policy_interface import GroupAction, GroupView, Limits, Settings, View
from coordinator_free.correction.residuals import Residuals, contraction

MIN_RHO = 0.05  # a complete graph has rho = 0; keeps the ratios rho / rho0 finite
MAX_RHO = 0.999  # keeps 1 / (1 - rho^2) finite
NO_CONTRACTION = 1e-9
GAMMA_NOTCH = 1.5
LEAST_COST = 1e-6  # cost of a round without neighbours; avoids a division by 0
OPPOSITE = {"more": "less", "less": "more"}


class Move(NamedTuple):
    """A change of one knob of one group by one notch.

    `label`: the direction and the knob, such as `more-steps`.
    """

    group: str
    label: str
    action: GroupAction

    def describe(self) -> str:
        """The move as a reason shows it, such as `prox 1e-3`."""
        action = self.action
        texts = {
            "steps": f"steps {action.steps}",
            "prox": f"prox {_short(action.prox)}",
            "rung": f"graph {action.rung:+d}",
            "gamma": f"gamma {action.gamma:.2g}",
            "period": f"sync {action.period}",
        }
        return texts[knob(self.label)]


def own_moves(settings: Settings, limits: Limits) -> Iterator[Move]:
    """The moves that a device can make without its neighbours: local steps and proximal damping."""
    for group, action in settings.items():
        yield from _changes(group, action, _own_options(action, limits))


def moves(settings: Settings, limits: Limits, view: View) -> Iterator[Move]:
    """Every notch up and down of every knob within the limits, with groups and knobs in a fixed order.

    Without averaging of copies there is no mixing strength.
    """
    ladder = view.ladder
    for group, action in settings.items():
        options = {
            **_own_options(action, limits),
            "more-rung": replace(action, rung=ladder.clipped(action.rung + 1)),
            "less-rung": replace(action, rung=ladder.clipped(action.rung - 1)),
            "more-period": replace(action, period=min(2 * action.period, limits.period_max)),
            "less-period": replace(action, period=max(action.period // 2, 1)),
        }
        if view.averages:
            options["more-gamma"] = replace(action, gamma=min(action.gamma * GAMMA_NOTCH, 1.0))
            options["less-gamma"] = replace(action, gamma=max(action.gamma / GAMMA_NOTCH, limits.gamma_min))
        yield from _changes(group, action, options)


def _own_options(action: GroupAction, limits: Limits) -> dict[str, GroupAction]:
    return {
        "more-steps": replace(action, steps=min(_more(action.steps), limits.steps_max)),
        "less-steps": replace(action, steps=max(_less(action.steps), limits.steps_min)),
        "more-prox": replace(action, prox=_more_prox(action.prox, limits)),
        "less-prox": replace(action, prox=_less_prox(action.prox, limits)),
    }


def _changes(group: str, action: GroupAction, options: Mapping[str, GroupAction]) -> Iterator[Move]:
    return (Move(group, label, after) for label, after in options.items() if after != action)


def knob(label: str) -> str:
    """The knob of a move's label: `steps` of `more-steps`."""
    return label.rpartition("-")[2]


def opposite(label: str) -> str:
    """The label of the opposite move: `less-steps` for `more-steps`."""
    way, _, knob = label.partition("-")
    return f"{OPPOSITE[way]}-{knob}" if knob else label


def predicted(view: View, group: str, before: GroupAction, after: GroupAction) -> Residuals:
    """A group's residuals at the next diagnosis, K = `view.rounds` rounds later, from those observed under
    `before`.

    R_loc contracts by (1 - `progress`)^(2K). As in Theorem 2, R_con has two parts. The sustained part is the
    divergence by the steps between two exchanges, L eta^2 (H n)^2 zeta^2 rho^2 / (1 - rho^2); it follows the
    settings. The rest contracts by rho^(2K/H). R_het is sustained, with denominator 1 - q^2.
    """
    g, rounds = view.groups[group], view.rounds
    q0, q = _contraction(g, before), _contraction(g, after)
    steps2, period2 = (after.steps / before.steps) ** 2, (after.period / before.period) ** 2
    damped = _damping_factor(g.eta, after) / _damping_factor(g.eta, before)
    left0, left = 1 - q0 * q0, 1 - q * q
    # Where nothing contracts, 1 - q^2 ~ 2 n eta mu.
    summed = left0 / left if left > NO_CONTRACTION else before.steps / after.steps
    rho0, rho = _rho(view, before), _rho(view, after)
    divergence = g.residuals.heterogeneity * left0 * before.period**2 * _accumulated(rho0)
    sustained = min(g.residuals.consensus, divergence)
    return Residuals(
        g.residuals.local * (1 - progress(view, group, after)) ** (2 * rounds),
        (g.residuals.consensus - sustained) * rho ** (2 * rounds / after.period)
        + sustained * steps2 * period2 * damped * _accumulated(rho) / _accumulated(rho0),
        g.residuals.heterogeneity * (1.0 if view.isolated else summed * steps2) * damped,
    )


def progress(view: View, group: str, action: GroupAction) -> float:
    """The share of its remaining distance that the mean model covers in a round.

    If all devices move a block: 1 - q with q = (1 - eta mu / (1 + eta lambda))^n. If only its owner moves it
    (ours, not in the paper), the mean of M copies covers 1/M of the owner's move. In addition the owner
    starts ahead of the mean, by what remains of its earlier moves. In the steady state this lead is A moves,
    with A = (1/M) sum lambda / (1 - lambda) over the eigenvalues of the mixing matrix without that of the
    mean (for a mean owner). With a = 1 - q^H and an exchange every H rounds the share is a / (1 + a A) / (M
    H). So if an owner progresses far in a round, more steps add little and a denser graph helps; otherwise
    steps help.
    """
    q = _contraction(view.groups[group], action)
    if not view.isolated:
        return 1 - q
    share = 1 - q**action.period
    modes = [min(1 - action.gamma * (1 - mode), MAX_RHO) for mode in view.ladder.at(action.rung).modes]
    members = len(modes) + 1
    ahead = sum(mode / (1 - mode) for mode in modes) / members if view.averages else 0.0
    return share / (1 + share * ahead) / (members * action.period)


def remaining(view: View, group: str, residuals: Residuals, action: GroupAction) -> float:
    """The remaining error of a group: the sum of its residuals, with R_het weighted by 1 - q^(2K), K =
    `view.rounds`.

    R_het sums the differences of the devices' steps over infinitely many rounds. Where little contracts, this
    limit is reached late. With full weight a group would stop instead of learn. With isolated blocks it does
    not count: a sum that no allowed action changes would only hide the effects of actions on the others.
    """
    if view.isolated:
        return residuals.local + residuals.consensus
    g = view.groups[group]
    q = _contraction(g, action)
    return residuals.local + residuals.consensus + residuals.heterogeneity * (1 - q ** (2 * view.rounds))


def bytes_used(settings: Settings, view: View) -> float:
    """Bytes of an average round: each group's bytes over the edges of its graph, every H-th round."""
    base = view.ladder.at(0).cost or 1.0
    return sum(
        view.groups[g].bytes * view.ladder.at(a.rung).cost / base / a.period for g, a in settings.items()
    )


def steps_used(settings: Settings) -> int:
    """Local steps of a round: the maximum over groups, because each step computes through all layers."""
    return max((action.steps for action in settings.values()), default=0)


def relative_cost(settings: Settings, view: View, limits: Limits) -> float:
    """The cost of a round relative to a round of `limits.base`: bytes and compute, weighted by
    `byte_share`.
    """
    sent, steps = relative_use(settings, view, limits)
    return max(limits.byte_share * sent + (1 - limits.byte_share) * steps, LEAST_COST)


def affordable(settings: Settings, view: View, limits: Limits) -> bool:
    """Whether the settings are within `bytes_max`. `steps_max` limits compute."""
    return relative_use(settings, view, limits)[0] <= limits.bytes_max * (1 + 1e-9)


def relative_use(settings: Settings, view: View, limits: Limits) -> tuple[float, float]:
    """Bytes and local steps of a round, each relative to a round of `limits.base`."""
    uniform = dict.fromkeys(settings, limits.base)
    sent = bytes_used(uniform, view)
    return (bytes_used(settings, view) / sent if sent else 0.0), steps_used(settings) / limits.base.steps


def in_force(view: View, limits: Limits, held: Settings) -> dict[str, GroupAction]:
    """The present settings: `held`, or the base for a group without an entry, with rungs clipped to the
    ladder.
    """
    settings = {group: held.get(group, limits.base) for group in view.groups}
    return {g: replace(a, rung=view.ladder.clipped(a.rung)) for g, a in settings.items()}


def applied(settings: Settings, chosen: Mapping[str, Move]) -> dict[str, GroupAction]:
    """The settings after the moves in `chosen`, at most one for each group."""
    return {g: chosen[g].action if g in chosen else a for g, a in settings.items()}


def _rho(view: View, action: GroupAction) -> float:
    """An upper bound of ||(1 - gamma) I + gamma W - J||_2: 1 - gamma + gamma rho, clipped."""
    return min(max(1 - action.gamma * (1 - view.ladder.at(action.rung).rho), MIN_RHO), MAX_RHO)


def _contraction(g: GroupView, action: GroupAction) -> float:
    """q of a round: damping slows descent."""
    return contraction(g.rate / (1 + g.eta * action.prox), action.steps)


def _accumulated(rho: float) -> float:
    """sum_{s >= 1} rho^(2s): the divergence of all earlier rounds that mixing has left, relative to that of
    one round.
    """
    return rho * rho / (1 - rho * rho)


def _damping_factor(eta: float, action: GroupAction) -> float:
    """(1 + eta lambda)^(-2n)."""
    return float((1 + eta * action.prox) ** (-2 * action.steps))


def _short(value: float) -> str:
    """0.001 as 1e-3."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+00", "")


def _more(steps: int) -> int:
    """The next notch up: 1 2 3 4 6 9 13, by one step or by half."""
    return steps + max(1, steps // 2)


def _less(steps: int) -> int:
    """The next notch down: by one step or by a third."""
    return steps - max(1, steps // 3)


def _more_prox(prox: float, limits: Limits) -> float:
    return limits.prox_min if prox == 0 else min(prox * 10**0.5, limits.prox_max)


def _less_prox(prox: float, limits: Limits) -> float:
    less = prox / 10**0.5
    return less if less >= limits.prox_min * 0.99 else 0.0
