"""The arms of the experiments: ways to correct after a leave. Each is a set of changes to one scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

N_MAX = "n_max"  # a value of `changes`: correction.steps_max of the setting
UNIFORM, NONE, ORACLE, PAPER_LITERAL = "uniform", "none", "oracle", "paper-literal"
NAIVE, NAIVE_REMOVE, EWC_LEAVE = "naive", "naive-remove", "ewc-leave"
INFLUENCE, KD_UNLEARN, FEDERASER = "influence", "kd-unlearn", "federaser"
UNLEARNERS = (NAIVE_REMOVE, INFLUENCE, KD_UNLEARN, FEDERASER)  # arms of `baselines` alone, by default


@dataclass(frozen=True)
class Arm:
    """One way to correct.

    changes: key path -> value, on top of the common scenario.
    event: the event of the leaver; None: the run has no leaver.
    branches: whether the run resumes the checkpoint of `BEFORE`.
    derived: the arm whose state right after the event gives the measures; empty: the arm has its own run.
    repeats: every so many rounds of the training are repeated after the event (FedEraser); 0: none.
    oracle: the oracle with its number of local steps and its optimiser, against which recovery is judged.
    """

    name: str
    description: str
    changes: Mapping[str, object] = field(default_factory=dict)
    event: str | None = "leave"
    branches: bool = True
    derived: str = ""
    repeats: int = 0
    oracle: str = ORACLE


# With a share of 0.4 each, five survivors would take over twice the output of the block (method 4).
REFIT = {"correction.refit": 0.25}
EARLY = {"correction.policy": "early-steps", "correction.steps_max": 20}
FISHER = {**EARLY, "correction.fisher": True}
MANY_LOCAL, MANY, MANY_FISHER = "oracle-max-steps", "oracle-20", "oracle-20-fisher"
MANY_STEPS = (MANY, MANY_FISHER)  # oracles of the arms with early steps: 2 K rounds
INTERFERENCE = {**FISHER, "correction.interference": True}
PROJECTION = {**EARLY, "correction.projection": True}
PAPER_FULL = {"correction.policy": "proportional-sync"}
REHEARSED = {"train.rehearsal": 0.3}
EWC = 10.0  # lambda, for the mean loss of a batch
NEWEST = {"mixing.mode": "newest"}


def _policy(name: str, description: str, oracle: str = ORACLE) -> Arm:
    return Arm(name, description, {"correction.policy": name}, oracle=oracle)


def _oracle(name: str, description: str, changes: Mapping[str, object]) -> Arm:
    return Arm(name, f"`oracle` with {description}", changes, event=None, branches=False, oracle=name)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        _policy("dominant", "the action with the largest predicted drop per cost"),
        _policy("proportional", "Algorithm 1: steps, damping, mixing by priority (the paper's full)"),
        _policy("ls+prox", "local steps and proximal damping by priority"),
        _policy("local-steps", "local steps by priority"),
        _policy("retain-prox", "proximal damping by priority"),
        _policy(UNIFORM, "equal settings for all groups"),
        _policy("topology", "denser graphs by priority"),
        _policy("sync", "exchange periods by priority"),
        _policy("random", "control: any action"),
        _policy("lookahead", "control: the best action in trials of one round"),
        _policy("gamma-1", "constant: mixing at full strength"),
        _policy("max-steps+gamma-1", "constant: n_max local steps and mixing at full strength", MANY_LOCAL),
        Arm(
            "early-max-steps",
            "constant: n_max local steps in the first quarter",
            {"correction.policy": "early-steps"},
            oracle=MANY_LOCAL,
        ),
        Arm("paper-full", "the paper's full: shares by priority with H_g, gamma constant", PAPER_FULL),
        Arm(NONE, "deleted, then neither trained nor mixed", derived=UNIFORM),
        Arm(NAIVE_REMOVE, "Naive Remove: the block stays, and nothing follows", derived=NAIVE),
        Arm(
            NAIVE,
            "Naive Fine-tune: the block stays and the others continue, without projection",
            event="retire",
        ),
        Arm(
            EWC_LEAVE,
            "the block stays; the others continue with elastic weight consolidation",
            {"correction.ewc": EWC},
            event="retire",
        ),
        Arm(INFLUENCE, "the block stays; all blocks take one Gauss-Newton step", event="retire"),
        Arm(KD_UNLEARN, "the leaver trains its block towards the base model", event="retire"),
        Arm(
            FEDERASER,
            "the training is repeated without the leaver, from stored moves",
            branches=False,
            repeats=2,
        ),
        Arm(
            PAPER_LITERAL,
            "eq. (4) as printed, which averages blocks of different bases",
            {"mixing.mode": PAPER_LITERAL},
            branches=False,
        ),
        _policy("max-steps", "n_max local steps for all groups", MANY_LOCAL),
        Arm("early-steps", "20 local steps in the first rounds, then as `uniform`", EARLY, oracle=MANY),
        Arm(
            "projection",
            "FedOSD-like: early steps without their part that brings the leaver's output back",
            PROJECTION,
            oracle=MANY,
        ),
        Arm("handover", "the survivors refit their blocks before they delete the leaver's block", REFIT),
        Arm("handover+early-steps", "both", {**REFIT, **EARLY}, oracle=MANY),
        Arm(
            "fisher",
            "early steps in the eigenbasis of the own block's Fisher information",
            FISHER,
            oracle=MANY_FISHER,
        ),
        Arm(
            "interference",
            "early steps that disturb the neighbours' inputs little",
            INTERFERENCE,
            oracle=MANY_FISHER,
        ),
        Arm("handover+interference", "both", {**REFIT, **INTERFERENCE}, oracle=MANY_FISHER),
        Arm("handover+fisher", "both", {**REFIT, **FISHER}, oracle=MANY_FISHER),
        Arm("rehearsed", "departure rehearsal in training", REHEARSED, branches=False),
        Arm("rehearsed+handover", "both", {**REHEARSED, **REFIT}, branches=False),
        Arm("rehearsed+fisher", "both", {**REHEARSED, **FISHER}, branches=False, oracle=MANY_FISHER),
        Arm(
            "rehearsed+handover+fisher",
            "all three",
            {**REHEARSED, **REFIT, **FISHER},
            branches=False,
            oracle=MANY_FISHER,
        ),
        Arm("newest", "the newest version of each block instead of averages", NEWEST, branches=False),
        Arm(ORACLE, "trained from scratch without the leaver", event=None, branches=False),
        _oracle(MANY_LOCAL, "n_max local steps in all rounds", {"round.local_steps": N_MAX}),
        _oracle(MANY, "20 local steps in all of its 2 K rounds", {"round.local_steps": 20}),
        _oracle(
            MANY_FISHER,
            "20 local steps in the Fisher eigenbasis, measured every 10 of its 2 K rounds",
            {"round.local_steps": 20, "train.fisher_every": 10},
        ),
    )
}
BEFORE = Arm(
    "before",
    "no arm: all devices learn and save the checkpoint that the arms resume",
    {"checkpoint.save": True},
    event=None,
    branches=False,
)
ORACLES = tuple(name for name in ARMS if name == ORACLE or name.startswith(f"{ORACLE}-"))
RECOVERY = (
    *("max-steps", "early-steps", "projection", "handover", "handover+early-steps"),
    *("fisher", "handover+fisher", "interference", "handover+interference"),
    *("rehearsed", "rehearsed+handover", "rehearsed+fisher", "rehearsed+handover+fisher", "newest"),
)
POLICIES = tuple(name for name, arm in ARMS.items() if arm.changes.keys() == {"correction.policy"})
SINGLE_ACTIONS = ("local-steps", "retain-prox", "topology", "sync")
# Arms without a measurement. A policy has to beat the best of them at no more cost (constant_arms.py).
CONSTANT_ARMS = (UNIFORM, "gamma-1", "max-steps", "max-steps+gamma-1", "early-max-steps")
