"""The policy `dominant`: the action whose predicted residual drop per unit cost is largest (method 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from coordinator_free.decision import STAY, Decision, Limits, Memory, Settings, View
from coordinator_free.effects import (
    Move,
    affordable,
    applied,
    in_force,
    moves,
    opposite,
    predicted,
    relative_cost,
)

MARGIN = 0.1  # hysteresis: how much better than staying a move must be, as a share
LEAST_GAIN = 0.01  # and as a share of the whole residual, for where staying gains nothing
DWELL = 2  # diagnoses before a group's last move may be undone
MOVES = 3  # groups that may move in one diagnosis
SMOOTHING = 0.3  # weight of the newest observed / predicted
MAX_CORRECTION = 4.0  # and its inverse: one odd round must not rule an action out for good


def dominant(view: View, limits: Limits, memory: Memory) -> Decision:
    """The action whose predicted residual drop per unit cost is largest, with hysteresis.

    drop = sum_g R_g - c_stay c_g R'_g with the predicted R' and the learnt corrections c; cost is that of a
    round as it would then be, so that saving counts as well. Up to MOVES groups move; one that is too dear is
    tried together with one of another group that saves. Together they must beat staying by MARGIN, and none
    may undo the group's last move within DWELL diagnoses.
    """
    learnt = _learn(view, memory)
    before = in_force(view, limits, memory.settings)
    chosen = _chosen(view, limits, learnt, before)
    after = applied(before, chosen)
    expected = {g: (_label(chosen, g), predicted(view, g, before[g], after[g]).total) for g in after}
    last = {**learnt.last, **{g: (move.label, view.index) for g, move in chosen.items()}}
    return Decision(after, _reason(view, chosen), replace(learnt, expected=expected, last=last))


def _chosen(view: View, limits: Limits, memory: Memory, before: Settings) -> dict[str, Move]:
    """The best move, then the best beside it, while there is a gain; nothing unless it is clear in all."""
    chosen: dict[str, Move] = {}
    stay = gain = _gain(view, limits, memory, before, chosen)
    clear = max(MARGIN * abs(stay), LEAST_GAIN * sum(g.residuals.total for g in view.groups.values()))
    while len(chosen) < MOVES:
        found = [
            (_gain(view, limits, memory, before, o), o)
            for o in _options(view, limits, memory, before, chosen)
        ]
        best, option = max(found, key=lambda scored: scored[0], default=(gain, chosen))
        if best <= gain + clear / MOVES:
            break
        gain, chosen = best, option
    return chosen if gain > stay + clear else {}


def _options(
    view: View, limits: Limits, memory: Memory, before: Settings, chosen: dict[str, Move]
) -> Iterator[dict[str, Move]]:
    """One further move each, or two where the first cannot be paid for alone."""
    free = [
        move
        for move in moves(before, limits, view.ladder)
        if move.group not in chosen and not _undoes(move, view, memory)
    ]
    for move in free:
        single = {**chosen, move.group: move}
        if affordable(applied(before, single), view, limits):
            yield single
            continue
        for other in free:
            both = {**single, other.group: other}
            if other.group != move.group and affordable(applied(before, both), view, limits):
                yield both


def _gain(view: View, limits: Limits, memory: Memory, before: Settings, chosen: Mapping[str, Move]) -> float:
    """Predicted drop of all residuals until the next diagnosis, per cost of a round."""
    drop = 0.0
    for group, action in before.items():
        then = chosen[group].action if group in chosen else action
        left = predicted(view, group, action, then).total * _correction(memory, _label(chosen, group))
        drop += view.groups[group].residuals.total - left
    return drop / relative_cost(applied(before, chosen), view, limits)


def _learn(view: View, memory: Memory) -> Memory:
    """Corrections with what has come of the last decision.

    Of STAY: observed / predicted. Of a move: the same beyond what staying accounts for, so that a trend that
    all groups share speaks neither for nor against it.
    """
    learnt = dict(memory.corrections)
    seen = {
        group: (label, view.groups[group].residuals.total / expected)
        for group, (label, expected) in memory.expected.items()
        if group in view.groups and expected > 0
    }
    for group in sorted(seen, key=lambda g: (seen[g][0] != STAY[1], g)):
        label, ratio = seen[group]
        if label != STAY[1]:
            ratio /= learnt.get(STAY[1], 1.0)
        learnt[label] = _smoothed(learnt.get(label, 1.0), ratio)
    return replace(memory, corrections=learnt)


def _smoothed(old: float, ratio: float) -> float:
    """Geometric, within MAX_CORRECTION either way."""
    ratio = min(max(ratio, 1 / MAX_CORRECTION), MAX_CORRECTION)
    return float(old ** (1 - SMOOTHING) * ratio**SMOOTHING)


def _correction(memory: Memory, label: str) -> float:
    stay = memory.corrections.get(STAY[1], 1.0)
    return stay if label == STAY[1] else stay * memory.corrections.get(label, 1.0)


def _undoes(move: Move, view: View, memory: Memory) -> bool:
    label, index = memory.last.get(move.group, ("", 0))
    return label == opposite(move.label) and view.index - index <= DWELL


def _label(chosen: Mapping[str, Move], group: str) -> str:
    return chosen[group].label if group in chosen else STAY[1]


def _reason(view: View, chosen: Mapping[str, Move]) -> str:
    """Of the group that moved first, or has the largest residual: `late, R_het 0.41 of 0.63 -> prox 1e-3`."""
    group = next(iter(chosen), "") or max(view.groups, key=lambda g: view.groups[g].residuals.total)
    seen = view.groups[group].residuals
    told = [m.told() if m.group == group else f"{m.group} {m.told()}" for m in chosen.values()]
    return f"{group}, {seen.largest} {max(seen):.2g} of {seen.total:.2g} -> {', '.join(told) or 'stay'}"
