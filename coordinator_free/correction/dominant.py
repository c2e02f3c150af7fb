"""The policy `dominant`: the action whose predicted residual drop per unit cost is largest (method 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from coordinator_free.correction.action_model import (
    Move,
    affordable,
    applied,
    in_force,
    knob,
    moves,
    opposite,
    predicted,
    relative_cost,
    remaining,
)
from coordinator_free.correction.policy_interface import (
    STAY,
    Decision,
    GroupAction,
    Limits,
    Memory,
    Settings,
    View,
)

MARGIN = 0.01  # hysteresis: the share of what staying would leave by which moves must lower it together
LEAST_COST = 0.05  # of a base round: below it, moves compare by what they lower alone
DWELL = 2  # diagnoses before a group's last move may be undone
MOVES = 3  # groups that may move in one diagnosis
LEARNING_RATE = 0.5  # of learning from one diagnosis
NOISE_FLOOR = 0.1  # log residual: an effect predicted to be smaller teaches next to nothing
MIN_CORRECTION, MAX_CORRECTION = (
    0.1,
    2.0,
)  # a correction is in between: no action is believed to do nothing, or the opposite
MIXING = {"gamma", "rung", "period"}  # knobs of how copies are mixed
FREE = {"steps", "gamma"}  # knobs that may cost nothing
ROUNDING = 1e-6  # a share of what is left that is as good as none
FAILURE_FACTOR = 1.25  # moves have failed if that much is left of what staying was predicted to leave


def dominant(view: View, limits: Limits, memory: Memory) -> Decision:
    """The action whose predicted residual drop per unit cost is largest, with hysteresis.

    A drop is that of what is left at the next diagnosis, in comparison with staying; predictions are
    corrected by what was learnt. Up to MOVES groups move, each one knob and as many notches as pay; a move
    that does not fit the budget is tried together with one of another group that saves. Moves must lower what
    is left by MARGIN together, and none may undo its group's last one within DWELL diagnoses. With isolated
    blocks, steps and mixing that cost nothing are for whatever they gain.

    Moves after which more is left than staying was predicted to leave have failed: all groups return to the
    base, and such moves are not made again. But `_mixing_changed`.
    """
    comparable = replace(memory, expected={}) if _mixing_changed(view, memory) else memory
    learnt, failed = _learn(view, comparable), _failed(view, comparable)
    before = in_force(view, limits, memory.settings)
    if failed:
        learnt = replace(learnt, failed=learnt.failed | {*failed})
        before = dict.fromkeys(before, limits.base)
    search = _Search(view, limits, learnt, before)
    chosen = {} if failed else search.best()
    after = applied(search.before, chosen)
    expected = {
        g: (chosen[g].label if g in chosen else STAY[1], *_predicted_pair(view, g, action, after[g]))
        for g, action in search.before.items()
    }
    last = {**learnt.last, **{g: (move.label, view.index) for g, move in chosen.items()}}
    reason = _reason(view, chosen, failed)
    return Decision(after, reason, replace(learnt, expected=expected, last=last))


Moves = dict[str, Move]  # at most one of each group


@dataclass(frozen=True, slots=True)
class _Search:
    """For the best moves from the settings `before`."""

    view: View
    limits: Limits
    memory: Memory
    before: Settings

    def best(self) -> Moves:
        """The best notch, then the best beside it, while they lower what is left. If they do not lower it
        clearly: those that cost nothing."""
        chosen = self._greedily(lambda option, chosen: True)
        if self._predicted_total(chosen) < (1 - MARGIN) * self._predicted_total({}):
            return chosen
        return self._greedily(self._costs_nothing)

    def _greedily(self, allowed: Callable[[Moves, Moves], bool]) -> Moves:
        chosen: Moves = {}
        while True:
            options = [option for option in self._options(chosen) if allowed(option, chosen)]
            rates = [(self._rate(option, chosen), option) for option in options]
            rate, best = max(rates, key=lambda rated: rated[0], default=(0.0, chosen))
            if rate <= 0:
                return chosen
            chosen = best

    def _rate(self, option: Moves, chosen: Moves) -> float:
        """Drop per cost beside what is chosen; 0 for one that is too small to be told from noise."""
        left = self._predicted_total(chosen)
        drop = left - self._predicted_total(option)
        more = self._cost(option) - self._cost(chosen)
        least = ROUNDING if self._costs_nothing(option, chosen) else MARGIN / MOVES
        return drop / max(more, LEAST_COST) if drop > least * left else 0.0

    def _costs_nothing(self, option: Moves, chosen: Moves) -> bool:
        """With isolated blocks, steps up to those of the group with most, and stronger mixing, attack all
        that is left at no cost: groups that lag behind are taken along."""
        fresh = {knob(move.label) for group, move in option.items() if chosen.get(group) != move}
        return self.view.isolated and fresh <= FREE and self._cost(option) <= self._cost(chosen)

    def _options(self, chosen: Moves) -> Iterator[Moves]:
        """One further notch each, or two where the first cannot be paid for alone."""
        others = self._unmoved(chosen) if len(chosen) < MOVES else []
        for move in (*others, *self._one_notch_more(chosen)):
            single = {**chosen, move.group: move}
            if self._fits(single):
                yield single
                continue
            pairs = ({**single, other.group: other} for other in others if other.group != move.group)
            yield from (pair for pair in pairs if self._fits(pair))

    def _unmoved(self, chosen: Moves) -> list[Move]:
        """Moves of groups that have none yet, but those that have failed or would undo a group's last."""
        return [
            move
            for move in moves(self.before, self.limits, self.view)
            if move.group not in chosen
            and move.label not in self.memory.failed
            and not _undoes(move, self.view, self.memory)
        ]

    def _one_notch_more(self, chosen: Moves) -> Iterator[Move]:
        """One notch more of what is chosen."""
        for group, made in chosen.items():
            for move in moves({group: made.action}, self.limits, self.view):
                if move.label == made.label:
                    yield move

    def _fits(self, chosen: Moves) -> bool:
        return affordable(applied(self.before, chosen), self.view, self.limits)

    def _cost(self, chosen: Moves) -> float:
        return relative_cost(applied(self.before, chosen), self.view, self.limits)

    def _predicted_total(self, chosen: Moves) -> float:
        """All residuals as predicted for the next diagnosis: R'_stay (R'_move / R'_stay)^c."""
        left = 0.0
        for group, action in self.before.items():
            move = chosen.get(group)
            stay, then = _predicted_pair(self.view, group, action, action if move is None else move.action)
            trust = 1.0 if move is None else self.memory.corrections.get(move.label, 1.0)
            left += stay * (then / stay) ** trust if stay > 0 else then
        return left


def _predicted_pair(view: View, group: str, before: GroupAction, after: GroupAction) -> tuple[float, float]:
    """What is left of a group if it stays, and after the move."""
    stay, then = (predicted(view, group, before, action) for action in (before, after))
    return remaining(view, group, stay, before), remaining(view, group, then, after)


def _observed(view: View, group: str, memory: Memory) -> float:
    """What is left of a group by what was observed, under the settings that were in force."""
    if group not in view.groups:
        return 0.0
    residuals, action = view.groups[group].residuals, memory.settings.get(group)
    return residuals.total if action is None else remaining(view, group, residuals, action)


def _mixing_changed(view: View, memory: Memory) -> bool:
    """Whether residuals before and after the last decision cannot be compared.

    With isolated blocks an owner runs ahead of the copies that others hold, and its own loss is better than
    theirs. What changes how copies are mixed changes by how much, before it changes the mean model.
    """
    made = {knob(label) for label, _, _ in memory.expected.values()}
    return view.isolated and bool(made & MIXING)


def _learn(view: View, memory: Memory) -> Memory:
    """Corrections, observed / predicted effect by label of move, with what has come of the last decision.

    An effect is log(R' / R'_stay). What groups that stayed deviate by is common to all and says nothing of a
    move. The corrections follow by normalised least mean squares, so that small effects do not teach noise,
    and none is taken for more than MAX_CORRECTION times what was predicted.
    """
    learnt, trend = dict(memory.corrections), _trend(view, memory)
    for group, (label, stay, then) in memory.expected.items():
        left = _observed(view, group, memory)
        if label != STAY[1] and min(stay, then, left) > 0:
            effect, seen = math.log(then / stay), math.log(left / stay) - trend
            seen = min(max(seen, -MAX_CORRECTION * abs(effect)), MAX_CORRECTION * abs(effect))
            old = learnt.get(label, 1.0)
            new = old + LEARNING_RATE * effect * (seen - old * effect) / (effect**2 + NOISE_FLOOR**2)
            learnt[label] = min(max(new, MIN_CORRECTION), MAX_CORRECTION)
    return replace(memory, corrections=learnt)


def _trend(view: View, memory: Memory) -> float:
    """Mean log(observed / predicted) of the groups that stayed; 0 if none did."""
    logs = [
        math.log(_observed(view, group, memory) / stay)
        for group, (label, stay, _) in sorted(memory.expected.items())
        if label == STAY[1] and min(stay, _observed(view, group, memory)) > 0
    ]
    return sum(logs) / len(logs) if logs else 0.0


def _failed(view: View, memory: Memory) -> list[str]:
    """Labels of the last moves, if they have made things worse than staying was predicted to. The groups are
    taken together: a move of one shows in the gradients of all."""
    made = {label for label, _, _ in memory.expected.values()} - {STAY[1]}
    stay = sum(stay for _, stay, _ in memory.expected.values())
    seen = sum(_observed(view, group, memory) for group in memory.expected)
    return sorted(made) if seen > FAILURE_FACTOR * stay else []


def _undoes(move: Move, view: View, memory: Memory) -> bool:
    label, index = memory.last.get(move.group, ("", 0))
    return label == opposite(move.label) and view.index - index <= DWELL


def _reason(view: View, chosen: Mapping[str, Move], failed: list[str]) -> str:
    """Of the group that moved first, or has most to do (with isolated blocks: R_loc), as in
    `late, R_het 0.41 of 0.63 -> prox 1e-3`."""

    def most(group: str) -> tuple[float, str]:
        seen = view.groups[group].residuals
        return (seen.local, "R_loc") if view.isolated else (max(seen), seen.largest)

    group = next(iter(chosen), "") or max(view.groups, key=most)
    (value, name), seen = most(group), view.groups[group].residuals
    told = [m.describe() if m.group == group else f"{m.group} {m.describe()}" for m in chosen.values()]
    what = f"base: {', '.join(failed)} failed" if failed else ", ".join(told) or "stay"
    return f"{group}, {name} {value:.2g} of {seen.total:.2g} -> {what}"
