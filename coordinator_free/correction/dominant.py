"""The policy `dominant`: choose the action with the largest predicted residual drop per unit cost (method
7).
"""

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

MARGIN = 0.01  # hysteresis: moves together must lower the error predicted for staying by this share
LEAST_COST = 0.05  # lower bound of the cost in a rate, relative to a base round
DWELL = 2  # diagnoses before a group's last move may be undone
MOVES = 3  # groups that may move in one diagnosis
LEARNING_RATE = 0.5  # step size of the least mean squares update
NOISE_FLOOR = 0.1  # log residual: smaller predicted effects hardly change the corrections
MIN_CORRECTION, MAX_CORRECTION = 0.1, 2.0  # bounds of a correction
LEARNING = {"steps", "prox"}  # knobs of local training
MIXING = {"gamma", "rung", "period"}  # knobs that change the mixing of copies
FREE = {"steps", "gamma"}  # knobs whose moves may cost nothing
ROUNDING = 1e-6  # relative drops below this count as 0
FAILURE_FACTOR = 1.25  # moves failed if the error exceeds this multiple of that predicted for staying


def dominant(view: View, limits: Limits, memory: Memory) -> Decision:
    """Choose the moves with the largest predicted residual drop per unit cost, with hysteresis.

    A drop is the decrease of the remaining error at the next diagnosis, compared with staying. Learned
    corrections scale the predictions. Up to MOVES groups move, each by one knob and by as many notches as pay
    off. A move that exceeds the budget is tried together with a move of another group that saves bytes. All
    moves together must lower the remaining error by MARGIN, and no move may undo its group's last move within
    DWELL diagnoses. With isolated blocks, moves of steps and mixing that cost nothing are made for any gain.

    If the error after a decision exceeds FAILURE_FACTOR times that predicted for staying, its moves have
    failed: all groups return to the base, with their mixing strength, and such moves are not made again. A
    decision that changed the mixing of isolated blocks is not assessed (`_mixing_changed`).

    A move of steps or damping must also lower the largest residual of its group (`_lowers_largest`).
    """
    comparable = replace(memory, expected={}) if _mixing_changed(view, memory) else memory
    learned, failed = _learn(view, comparable), _failed(view, comparable)
    before = in_force(view, limits, memory.settings)
    if failed:
        learned = replace(learned, failed=learned.failed | {*failed})
        before = {g: replace(limits.base, gamma=max(limits.base.gamma, a.gamma)) for g, a in before.items()}
    search = _Search(view, limits, learned, before)
    chosen = {} if failed else search.best()
    after = applied(search.before, chosen)
    expected = {
        g: (chosen[g].label if g in chosen else STAY[1], *_predicted_pair(view, g, action, after[g]))
        for g, action in search.before.items()
    }
    last = {**learned.last, **{g: (move.label, view.index) for g, move in chosen.items()}}
    reason = _reason(view, chosen, failed)
    return Decision(after, reason, replace(learned, expected=expected, last=last))


Moves = dict[str, Move]  # at most one of each group


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the best moves from the settings `before`."""

    view: View
    limits: Limits
    memory: Memory
    before: Settings

    def best(self) -> Moves:
        """Add the best notch, one after the other, while they lower the remaining error.

        If together they do not lower it by MARGIN, only the moves that cost nothing are kept.
        """
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
        """Drop per additional cost compared with `chosen`; 0 for a drop too small to be distinguished from
        noise.
        """
        error = self._predicted_total(chosen)
        drop = error - self._predicted_total(option)
        more = self._cost(option) - self._cost(chosen)
        least = ROUNDING if self._costs_nothing(option, chosen) else MARGIN / MOVES
        return drop / max(more, LEAST_COST) if drop > least * error else 0.0

    def _costs_nothing(self, option: Moves, chosen: Moves) -> bool:
        """Whether the option adds only moves of steps or mixing strength that add no cost, with isolated
        blocks.

        Steps are free up to those of the group with most steps.
        """
        fresh = {knob(move.label) for group, move in option.items() if chosen.get(group) != move}
        return self.view.isolated and fresh <= FREE and self._cost(option) <= self._cost(chosen)

    def _options(self, chosen: Moves) -> Iterator[Moves]:
        """`chosen` plus one notch each, or plus two where the first one alone exceeds the budget."""
        others = self._unmoved(chosen) if len(chosen) < MOVES else []
        for move in (*others, *self._one_notch_more(chosen)):
            single = {**chosen, move.group: move}
            if self._fits(single):
                yield single
                continue
            pairs = ({**single, other.group: other} for other in others if other.group != move.group)
            yield from (pair for pair in pairs if self._fits(pair))

    def _unmoved(self, chosen: Moves) -> list[Move]:
        """Moves of groups without a chosen move, except failed moves, moves that would undo a group's last
        one, and moves that do not lower the group's largest residual.
        """
        return [
            move
            for move in moves(self.before, self.limits, self.view)
            if move.group not in chosen
            and move.label not in self.memory.failed
            and not _undoes(move, self.view, self.memory)
            and _lowers_largest(move, self.view, self.before[move.group])
        ]

    def _one_notch_more(self, chosen: Moves) -> Iterator[Move]:
        """The chosen moves, each extended by one notch."""
        for group, made in chosen.items():
            for move in moves({group: made.action}, self.limits, self.view):
                if move.label == made.label:
                    yield move

    def _fits(self, chosen: Moves) -> bool:
        return affordable(applied(self.before, chosen), self.view, self.limits)

    def _cost(self, chosen: Moves) -> float:
        return relative_cost(applied(self.before, chosen), self.view, self.limits)

    def _predicted_total(self, chosen: Moves) -> float:
        """The remaining error of all groups at the next diagnosis: sum of stay (move / stay)^c, c the
        correction.
        """
        error = 0.0
        for group, action in self.before.items():
            move = chosen.get(group)
            stay, then = _predicted_pair(self.view, group, action, action if move is None else move.action)
            trust = 1.0 if move is None else self.memory.corrections.get(move.label, 1.0)
            error += stay * (then / stay) ** trust if stay > 0 else then
        return error


def _predicted_pair(view: View, group: str, before: GroupAction, after: GroupAction) -> tuple[float, float]:
    """The predicted remaining error of a group after staying and after the move."""
    stay, then = (predicted(view, group, before, action) for action in (before, after))
    return remaining(view, group, stay, before), remaining(view, group, then, after)


def _lowers_largest(move: Move, view: View, before: GroupAction) -> bool:
    """Whether a move of steps or damping lowers the residual that is the largest of its group now.

    Without this rule, a tiny gain in another residual would take steps from a group that has to descend.
    Moves of the graph and the period may pay for another group. R_het does not count with isolated blocks
    (`remaining`).
    """
    if knob(move.label) not in LEARNING:
        return True
    counted = view.groups[move.group].residuals
    if view.isolated:
        counted = counted._replace(heterogeneity=0.0)
    largest = counted.index(max(counted))
    stay, then = (predicted(view, move.group, before, action)[largest] for action in (before, move.action))
    return then < stay


def _observed(view: View, group: str, memory: Memory) -> float:
    """The observed remaining error of a group under the settings that were in force; 0 for a group that is
    gone.
    """
    if group not in view.groups:
        return 0.0
    residuals, action = view.groups[group].residuals, memory.settings.get(group)
    return residuals.total if action is None else remaining(view, group, residuals, action)


def _mixing_changed(view: View, memory: Memory) -> bool:
    """Whether residuals before and after the last decision cannot be compared.

    With isolated blocks an owner is ahead of the copies on other devices, and its own loss is lower than
    theirs. A change of the mixing changes this lead before it changes the mean model.
    """
    made = {knob(label) for label, _, _ in memory.expected.values()}
    return view.isolated and bool(made & MIXING)


def _learn(view: View, memory: Memory) -> Memory:
    """Update the corrections (observed / predicted effect by label of move) with the result of the last
    decision.

    An effect is log(R' / R'_stay). The mean deviation of the groups that stayed is common to all groups and
    is subtracted. The update is normalised least mean squares (Nagumo and Noda, 1967), so that small effects
    do not learn noise. An observed effect is clipped to MAX_CORRECTION times the predicted one.
    """
    learned, trend = dict(memory.corrections), _trend(view, memory)
    for group, (label, stay, then) in memory.expected.items():
        error = _observed(view, group, memory)
        if label != STAY[1] and min(stay, then, error) > 0:
            effect, seen = math.log(then / stay), math.log(error / stay) - trend
            seen = min(max(seen, -MAX_CORRECTION * abs(effect)), MAX_CORRECTION * abs(effect))
            old = learned.get(label, 1.0)
            new = old + LEARNING_RATE * effect * (seen - old * effect) / (effect**2 + NOISE_FLOOR**2)
            learned[label] = min(max(new, MIN_CORRECTION), MAX_CORRECTION)
    return replace(memory, corrections=learned)


def _trend(view: View, memory: Memory) -> float:
    """Mean log(observed / predicted) of the groups that stayed; 0 if none stayed."""
    logs = [
        math.log(_observed(view, group, memory) / stay)
        for group, (label, stay, _) in sorted(memory.expected.items())
        if label == STAY[1] and min(stay, _observed(view, group, memory)) > 0
    ]
    return sum(logs) / len(logs) if logs else 0.0


def _failed(view: View, memory: Memory) -> list[str]:
    """Labels of the last moves if the total error exceeds FAILURE_FACTOR times that predicted for staying,
    else [].

    The groups are taken together, because a move of one group shows in the gradients of all.
    """
    made = {label for label, _, _ in memory.expected.values()} - {STAY[1]}
    stay = sum(stay for _, stay, _ in memory.expected.values())
    seen = sum(_observed(view, group, memory) for group in memory.expected)
    return sorted(made) if seen > FAILURE_FACTOR * stay else []


def _undoes(move: Move, view: View, memory: Memory) -> bool:
    """Whether the move is the opposite of its group's last one, within DWELL diagnoses."""
    label, index = memory.last.get(move.group, ("", 0))
    return label == opposite(move.label) and view.index - index <= DWELL


def _reason(view: View, chosen: Mapping[str, Move], failed: list[str]) -> str:
    """The decision in one line, such as `late, R_het 0.41 of 0.63 -> prox 1e-3`.

    It names the group that moved first, or else the one with the largest residual.
    """

    def most(group: str) -> tuple[float, str]:
        seen = view.groups[group].residuals
        return max(seen), seen.largest

    group = next(iter(chosen), "") or max(view.groups, key=most)
    (value, name), seen = most(group), view.groups[group].residuals
    described = [m.describe() if m.group == group else f"{m.group} {m.describe()}" for m in chosen.values()]
    what = f"base: {', '.join(failed)} failed" if failed else ", ".join(described) or "stay"
    return f"{group}, {name} {value:.2g} of {seen.total:.2g} -> {what}"
