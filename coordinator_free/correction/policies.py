"""Correction policies: from the residuals of a diagnosis to the next action of each layer group (method 7).

Policies are pure and deterministic: devices with equal inputs decide alike. `POLICIES` maps names to
policies, `SCHEDULES` to rules that use no measurement and so cost no diagnosis. A plugin may add to both. A
policy uses measurements of survivors, never the leaver's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from coordinator_free.correction.action_model import Move, affordable, in_force, moves, relative_cost
from coordinator_free.correction.dominant import dominant
from coordinator_free.correction.policy_interface import (
    STAY,
    Decision,
    GroupAction,
    Limits,
    Memory,
    View,
)
from coordinator_free.seeded_random import blake2b_128, generator

Policy = Callable[[View, Limits, Memory], Decision]
POLICIES: dict[str, Policy] = {}
Schedule = Callable[[int, int, Limits], GroupAction]  # round k of K -> the action of all groups
SCHEDULES: dict[str, Schedule] = {}
Added = TypeVar("Added")
AT_FULL_STRENGTH = ("dominant",)  # policies that mix with gamma = 1 before their first decision
EARLY_PART = 4  # `early-steps` acts in the first K / EARLY_PART rounds


def policy(name: str) -> Callable[[Policy], Policy]:
    """Decorator: register a policy under a name. Raises ValueError for the name of a schedule."""
    return _registrar(name, POLICIES, SCHEDULES, "schedule")


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Decorator: register a schedule: the action of all groups in round k = 0, 1, ... of a correction of K
    rounds.

    The graphs stay those of the scenario. Raises ValueError for the name of a policy.
    """
    return _registrar(name, SCHEDULES, POLICIES, "policy")


def _registrar(
    name: str, registry: dict[str, Added], others: Mapping[str, object], kind: str
) -> Callable[[Added], Added]:
    if name in others:
        raise ValueError(f"{name!r} is already the name of a {kind}")

    def add(rule: Added) -> Added:
        registry[name] = rule
        return rule

    return add


def before_decision(name: str, groups: Iterable[str], limits: Limits) -> dict[str, GroupAction]:
    """The settings of a policy between an event and its first decision; empty: the base.

    `dominant` mixes at full strength from the start. This costs no step, and no byte without
    `mixing.tolerance`: with it, copies change more and are sent more often. A diagnosis and the exchange of
    its results take rounds.
    """
    return dict.fromkeys(groups, replace(limits.base, gamma=1.0)) if name in AT_FULL_STRENGTH else {}


def decide(name: str, view: View, limits: Limits, memory: Memory) -> Decision:
    """Run the policy `name` and clip its rungs to the ladder. The reason starts with the policy's name.

    Raises KeyError for an unknown name.
    """
    made = POLICIES[name](view, limits, memory)
    settings = {g: replace(a, rung=view.ladder.clipped(a.rung)) for g, a in made.settings.items()}
    return Decision(
        settings,
        f"{name}: {made.reason}",
        replace(made.memory, settings=settings),
        {g: view.ladder.added(a.rung) for g, a in settings.items()},
        {g: view.ladder.dropped(a.rung) for g, a in settings.items()},
    )


# -- schedules: the same action for all groups, without a measurement ----------------------------------------
@schedule("uniform")
def uniform(k: int, of: int, limits: Limits) -> GroupAction:
    """The base action."""
    return limits.base


@schedule("max-steps")
def max_steps(k: int, of: int, limits: Limits) -> GroupAction:
    """n_max local steps: more compute at the bytes of `uniform`."""
    return replace(limits.base, steps=limits.steps_max)


@schedule("early-steps")
def early_steps(k: int, of: int, limits: Limits) -> GroupAction:
    """n_max local steps in the first quarter of the correction, then the base."""
    return max_steps(k, of, limits) if k * EARLY_PART < of else limits.base


@schedule("gamma-1")
def gamma_1(k: int, of: int, limits: Limits) -> GroupAction:
    """Mixing at full strength, gamma = 1: no more steps than `uniform`, and with `mixing.tolerance` a few
    per cent more bytes, since copies change more."""
    return replace(limits.base, gamma=1.0)


@schedule("max-steps+gamma-1")
def max_steps_gamma_1(k: int, of: int, limits: Limits) -> GroupAction:
    """n_max local steps and mixing at full strength."""
    return replace(max_steps(k, of, limits), gamma=1.0)


# -- shares by priority --------------------------------------------------------------------------------------
@policy("proportional")
def proportional(view: View, limits: Limits, memory: Memory) -> Decision:
    """Algorithm 1: n_g, lambda_g and gamma_g follow p_g. gamma_g also sets the density of the group's
    graph.
    """
    return _by_priority(view, limits, memory, _steps, _prox, _gamma, _density)


@policy("proportional-sync")
def proportional_sync(view: View, limits: Limits, memory: Memory) -> Decision:
    """n_g, lambda_g and H_g follow p_g; gamma and the graph are those of the scenario.

    The paper's `full` has H_g and a constant gamma. Its rule for H_g is not stated: `sync` is ours.
    """
    return _by_priority(view, limits, memory, _steps, _prox, _period)


@policy("local-steps")
def local_steps(view: View, limits: Limits, memory: Memory) -> Decision:
    """n_g = n_min + (n_max - n_min) p_g; nothing else changes."""
    return _by_priority(view, limits, memory, _steps)


@policy("retain-prox")
def retain_prox(view: View, limits: Limits, memory: Memory) -> Decision:
    """lambda_g = lambda_max p_g; nothing else changes."""
    return _by_priority(view, limits, memory, _prox)


@policy("ls+prox")
def steps_and_prox(view: View, limits: Limits, memory: Memory) -> Decision:
    """`local-steps` and `retain-prox` together."""
    return _by_priority(view, limits, memory, _steps, _prox)


@policy("topology")
def topology(view: View, limits: Limits, memory: Memory) -> Decision:
    """The group with the highest priority gets the densest graph, the others a rung in proportion to p_g."""
    return _by_priority(view, limits, memory, _denser)


@policy("sync")
def sync(view: View, limits: Limits, memory: Memory) -> Decision:
    """The group with the highest priority is exchanged every round, the others every H_g = p_max / p_g
    rounds.
    """
    return _by_priority(view, limits, memory, _period)


Rule = Callable[
    [GroupAction, float, View, Limits], GroupAction
]  # action and p_g of a group -> its new action


def _by_priority(view: View, limits: Limits, memory: Memory, *rules: Rule) -> Decision:
    settings = dict.fromkeys(view.groups, limits.base)
    for group, seen in view.groups.items():
        for rule in rules:
            settings[group] = rule(settings[group], seen.priority, view, limits)
    shares = ", ".join(f"{group} {seen.priority:.2f}" for group, seen in view.groups.items())
    return Decision(settings, f"p = {shares}", memory)


def _steps(action: GroupAction, p: float, view: View, limits: Limits) -> GroupAction:
    return replace(action, steps=round(limits.steps_min + (limits.steps_max - limits.steps_min) * p))


def _prox(action: GroupAction, p: float, view: View, limits: Limits) -> GroupAction:
    return replace(action, prox=limits.prox_max * p)


def _gamma(action: GroupAction, p: float, view: View, limits: Limits) -> GroupAction:
    return replace(action, gamma=limits.gamma_min + (1 - limits.gamma_min) * p)


def _density(action: GroupAction, p: float, view: View, limits: Limits) -> GroupAction:
    """The rung whose number of edges is nearest to gamma_g times that of the densest rung."""
    ladder = view.ladder
    wanted = (limits.gamma_min + (1 - limits.gamma_min) * p) * len(ladder.at(ladder.top).edges)
    rungs = range(-ladder.base, ladder.top + 1)
    return replace(action, rung=min(rungs, key=lambda k: (abs(len(ladder.at(k).edges) - wanted), k)))


def _denser(action: GroupAction, p: float, view: View, limits: Limits) -> GroupAction:
    return replace(action, rung=round(view.ladder.top * p / _highest(view)))


def _period(action: GroupAction, p: float, view: View, limits: Limits) -> GroupAction:
    highest = _highest(view)
    rare = p * limits.period_max <= highest
    return replace(action, period=limits.period_max if rare else max(round(highest / p), 1))


def _highest(view: View) -> float:
    return max(seen.priority for seen in view.groups.values()) or 1.0


# -- one action at a time ------------------------------------------------------------------------------------
Option = tuple[tuple[str, str], dict[str, GroupAction], Move | None]  # key of View.trials, settings, move


def options(view: View, limits: Limits, memory: Memory) -> list[Option]:
    """Staying and every affordable move from the present settings."""
    settings = in_force(view, limits, memory.settings)
    found: list[Option] = [(STAY, settings, None)]
    for move in moves(settings, limits, view):
        then = {**settings, move.group: move.action}
        if affordable(then, view, limits):
            found.append(((move.group, move.label), then, move))
    return found


@policy("random")
def random(view: View, limits: Limits, memory: Memory) -> Decision:
    """A control: one of `options` at random, from a generator that is seeded by the run and the diagnosis."""
    found = options(view, limits, memory)
    _, then, move = found[int(_generator(view).integers(len(found)))]
    return Decision(then, "stay" if move is None else f"{move.group} -> {move.describe()}", memory)


@policy("lookahead")
def lookahead(view: View, limits: Limits, memory: Memory) -> Decision:
    """A control: the move whose trial (lookahead.py) lowered the loss most per cost; none if no trial lowered
    it.
    """
    found = options(view, limits, memory)
    gains = [view.trials.get(key, 0.0) / relative_cost(then, view, limits) for key, then, _ in found]
    best = max(range(len(found)), key=lambda i: gains[i])
    if gains[best] <= 0:
        return Decision(found[0][1], "no trial lowered the loss -> stay", memory)
    key, then, move = found[best]
    described = "stay" if move is None else f"{move.group} {move.describe()}"
    return Decision(then, f"trial {view.trials[key]:.2g} -> {described}", memory)


policy("dominant")(dominant)


def _generator(view: View) -> np.random.Generator:
    return generator(view.seed, view.index, digest=blake2b_128)
