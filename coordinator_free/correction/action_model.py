"""The corrective actions: what each changes, what it is predicted to do and what it costs (method 7).

| action                    | residual                           | predicted factor                          |
|---------------------------|------------------------------------|-------------------------------------------|
| local steps n0 -> n       | R_loc, but raises R_con and R_het  | (1 - eta mu)^2 a step; (n / n0)^2         |
| proximal damping lambda   | R_het and drift                    | (1 + eta lambda)^(-2n); R_loc is slower   |
| topology, rho0 -> rho     | R_con                              | (rho / rho0)^2                            |
| mixing strength gamma     | R_con, as a denser graph; no cost  | (rho / rho0)^2                            |
| exchange every H-th round | R_con grows with H n steps between | (H / H0)^2; bytes / H                     |

With isolated blocks no step of one device undoes another's. That each follows the gradient of its own loss is
then a bias that no action but damping changes, and where copies differ the mean model, whose gap is to close,
is but slower (`progress`): R_loc alone is what is left to be done. rho is that of (1 - gamma) I + gamma W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from coordinator_free.correction.policy_interface import GroupAction, GroupView, Limits, Settings, View
from coordinator_free.correction.residuals import Residuals, contraction

MIN_RHO = 0.05  # a complete graph has rho = 0: no other may look infinitely worse
MAX_RHO = 0.999  # nor infinitely bad
NO_CONTRACTION = 1e-9
GAMMA_NOTCH = 1.5
LEAST_COST = 1e-6  # of a round in which nobody is there to send to
OPPOSITE = {"more": "less", "less": "more"}


class Move(NamedTuple):
    """One knob of one group, one notch."""

    group: str
    label: str
    action: GroupAction

    def describe(self) -> str:
        """As a reason shows it: `prox 1e-3`."""
        action = self.action
        told = {
            "steps": f"steps {action.steps}",
            "prox": f"prox {_short(action.prox)}",
            "rung": f"graph {action.rung:+d}",
            "gamma": f"gamma {action.gamma:.2g}",
            "period": f"sync {action.period}",
        }
        return told[knob(self.label)]


def own_moves(settings: Settings, limits: Limits) -> Iterator[Move]:
    """Those of `moves` that a device can make without its neighbours."""
    for group, action in settings.items():
        yield from _changes(group, action, _own_options(action, limits))


def moves(settings: Settings, limits: Limits, view: View) -> Iterator[Move]:
    """Every notch up and down of every knob, within the limits; groups and knobs in a fixed order. Where
    copies are not averaged there is no mixing strength."""
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
    """What a move turns: `steps` of `more-steps`."""
    return label.rpartition("-")[2]


def opposite(label: str) -> str:
    way, _, knob = label.partition("-")
    return f"{OPPOSITE[way]}-{knob}" if knob else label


def predicted(view: View, group: str, before: GroupAction, after: GroupAction) -> Residuals:
    """A group's residuals at the next diagnosis, `view.rounds` = K later. They were observed under `before`.

    R_loc contracts by (1 - `progress`)^(2K). Of R_con, as in Theorem 2, one part is sustained: what the steps
    between two exchanges drive apart, L eta^2 (H n)^2 zeta^2 rho^2 / (1 - rho^2); it moves with the settings,
    and the rest contracts by rho^(2K/H). R_het is sustained; 1 - q^2 is beneath.
    """
    g, rounds = view.groups[group], view.rounds
    q0, q = _contraction(g, before), _contraction(g, after)
    steps2, between2 = (after.steps / before.steps) ** 2, (after.period / before.period) ** 2
    damped = _damping_factor(g.eta, after) / _damping_factor(g.eta, before)
    left0, left = 1 - q0 * q0, 1 - q * q
    # Where nothing contracts, 1 - q^2 ~ 2 n eta mu.
    summed = left0 / left if left > NO_CONTRACTION else before.steps / after.steps
    rho0, rho = _rho(view, before), _rho(view, after)
    driven = g.residuals.heterogeneity * left0 * before.period**2 * _accumulated(rho0)
    sustained = min(g.residuals.consensus, driven)
    return Residuals(
        g.residuals.local * (1 - progress(view, group, after)) ** (2 * rounds),
        (g.residuals.consensus - sustained) * rho ** (2 * rounds / after.period)
        + sustained * steps2 * between2 * damped * _accumulated(rho) / _accumulated(rho0),
        g.residuals.heterogeneity * (1.0 if view.isolated else summed * steps2) * damped,
    )


def progress(view: View, group: str, action: GroupAction) -> float:
    """The share of its way that the mean model goes in a round.

    1 - q, q = (1 - eta mu / (1 + eta lambda))^n, where all devices move a block. Where its owner alone does
    (ours, not in the paper), the mean of M copies goes an M-th of the owner's move, and the owner starts it
    ahead of the mean by what earlier moves have left of themselves: once that is steady, by A moves,
    A = (1/M) sum lambda / (1 - lambda) over the modes of the mixing matrix but the mean (of a mean owner).
    With a = 1 - q^H and an exchange every H rounds that makes a / (1 + a A) / (M H). So where an owner comes
    far in a round, more steps add little and a denser graph does; where it does not, steps do.
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
    """What is left of a group: the sum, but of R_het only what K = `view.rounds` rounds have of it,
    (1 - q^(2K)); with isolated blocks R_loc.

    It sums what the devices' steps differ by over infinitely many rounds. Where little contracts it is
    far off for long: to count it whole would have a group stand still rather than learn.
    """
    if view.isolated:
        return residuals.local
    g = view.groups[group]
    q = _contraction(g, action)
    return residuals.local + residuals.consensus + residuals.heterogeneity * (1 - q ** (2 * view.rounds))


def bytes_used(settings: Settings, view: View) -> float:
    """Bytes of a mean round: a group's, over the edges of its graph, every H-th round."""
    base = view.ladder.at(0).cost or 1.0
    return sum(
        view.groups[g].bytes * view.ladder.at(a.rung).cost / base / a.period for g, a in settings.items()
    )


def steps_used(settings: Settings) -> int:
    """Local steps of a round: a step computes through all layers whichever groups it moves."""
    return max((action.steps for action in settings.values()), default=0)


def relative_cost(settings: Settings, view: View, limits: Limits) -> float:
    """Of a round, in that of a round of `limits.base`: bytes and compute, weighted by `byte_share`."""
    sent, steps = relative_use(settings, view, limits)
    return max(limits.byte_share * sent + (1 - limits.byte_share) * steps, LEAST_COST)


def affordable(settings: Settings, view: View, limits: Limits) -> bool:
    """Within the bytes; what compute a policy may use is said by `steps_max`."""
    return relative_use(settings, view, limits)[0] <= limits.bytes_max * (1 + 1e-9)


def relative_use(settings: Settings, view: View, limits: Limits) -> tuple[float, float]:
    """Bytes and local steps of a round, each in those of a round of `limits.base`."""
    uniform = dict.fromkeys(settings, limits.base)
    sent = bytes_used(uniform, view)
    return (bytes_used(settings, view) / sent if sent else 0.0), steps_used(settings) / limits.base.steps


def in_force(view: View, limits: Limits, held: Settings) -> dict[str, GroupAction]:
    """`held`, the base where nothing is, on rungs that there still are."""
    settings = {group: held.get(group, limits.base) for group in view.groups}
    return {g: replace(a, rung=view.ladder.clipped(a.rung)) for g, a in settings.items()}


def applied(settings: Settings, chosen: Mapping[str, Move]) -> dict[str, GroupAction]:
    """The settings after one move of each of some groups."""
    return {g: chosen[g].action if g in chosen else a for g, a in settings.items()}


def _rho(view: View, action: GroupAction) -> float:
    """Of what mixes in a round, at most: ||(1 - gamma) I + gamma W - J|| <= 1 - gamma + gamma rho."""
    return min(max(1 - action.gamma * (1 - view.ladder.at(action.rung).rho), MIN_RHO), MAX_RHO)


def _contraction(g: GroupView, action: GroupAction) -> float:
    """q of a round: damping slows descent."""
    return contraction(g.eta, g.mu / (1 + g.eta * action.prox), action.steps)


def _accumulated(rho: float) -> float:
    """sum_{s >= 1} rho^(2s): how much of all rounds' driving apart is still there."""
    return rho * rho / (1 - rho * rho)


def _damping_factor(eta: float, action: GroupAction) -> float:
    """(1 + eta lambda)^(-2n)."""
    return float((1 + eta * action.prox) ** (-2 * action.steps))


def _short(value: float) -> str:
    """0.001 as 1e-3."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+00", "")


def _more(steps: int) -> int:
    """1 2 3 4 6 9 13: a step more where there are few, half as many again where there are many."""
    return steps + max(1, steps // 2)


def _less(steps: int) -> int:
    return steps - max(1, steps // 3)


def _more_prox(prox: float, limits: Limits) -> float:
    return limits.prox_min if prox == 0 else min(prox * 10**0.5, limits.prox_max)


def _less_prox(prox: float, limits: Limits) -> float:
    less = prox / 10**0.5
    return less if less >= limits.prox_min * 0.99 else 0.0
