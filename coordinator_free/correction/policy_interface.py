"""The interface of correction policies: input, actions, memory and decision (method 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from coordinator_free.correction.graph_ladder import Edge, Ladder
from coordinator_free.correction.residuals import Residuals

STAY = ("", "stay")  # key of the choice to make no move


@dataclass(frozen=True, slots=True)
class GroupAction:
    """The settings of one layer group until the next decision.

    `steps`: n_g local steps a round. `prox`: lambda_g of 1/2 lambda ||B - B~||^2, with B~ the own block right
    after the deletion (FedProx). `gamma`: mixing strength gamma_g of (1 - gamma_g) I + gamma_g W. `period`:
    H_g, the group is exchanged every H_g-th round. `rung`: of the ladder of graphs; 0 is the scenario's
    graph.
    """

    steps: int
    prox: float = 0.0
    gamma: float = 1.0
    period: int = 1
    rung: int = 0

    def record(self) -> dict[str, float]:
        """As a JSON object."""
        return asdict(self)


Settings = Mapping[str, GroupAction]  # by group, in the layout's order


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of policies. The defaults of n, lambda and gamma are the paper's (method 10).

    `bytes_max`: bytes of a round that `dominant` may use, relative to a round of `base`. `byte_share`: the
    share of bytes in the cost of a round of `base`; the rest is compute.
    """

    base: GroupAction = GroupAction(2)  # the action of `uniform`
    steps_min: int = 1
    steps_max: int = 2
    prox_min: float = 1e-4  # the first notch above 0
    prox_max: float = 1e-3
    gamma_min: float = 0.4
    period_max: int = 8
    bytes_max: float = 1.0
    byte_share: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError for a range that is empty or does not contain the base."""
        if not 1 <= self.steps_min <= self.base.steps <= self.steps_max:
            raise ValueError("steps_min <= base.steps <= steps_max does not hold")
        if not 0 < self.prox_min <= self.prox_max or not 0 <= self.base.prox <= self.prox_max:
            raise ValueError("0 < prox_min <= prox_max does not hold, or base.prox is beyond it")
        if not 0 < self.gamma_min <= self.base.gamma <= 1 or not 1 <= self.base.period <= self.period_max:
            raise ValueError("base.gamma or base.period is out of range")


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group from the network-wide means.

    `priority`: p_g. `rate`: eta mu of a local step, `eta`: estimates of method 6. `bytes`: of a round that
    exchanges the group over the scenario's graph.
    """

    residuals: Residuals
    priority: float  # p_g
    rate: float
    eta: float
    bytes: float


@dataclass(frozen=True, slots=True)
class View:
    """The input of a policy: equal on all devices, without the leaver's data.

    `index`: number of this diagnosis. `rounds`: K, the rounds until the next one. `trials` (only for
    `lookahead`): the drop of the loss in a trial of one round, by (group, label) of a move, or STAY.
    `isolated`: a device's gradients reach its own block only. `averages`: copies are averaged, so they hold
    their owner back; otherwise the owner's copy replaces them.
    """

    index: int
    rounds: int
    groups: Mapping[str, GroupView]
    ladder: Ladder
    seed: int
    trials: Mapping[tuple[str, str], float] = field(default_factory=dict)
    isolated: bool = False
    averages: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    """The state that a policy keeps from one diagnosis to the next.

    `settings`: in force, empty: the base. `corrections`: observed / predicted effect by label of move,
    smoothed. `failed`: labels of moves that raised the error. `expected`: by group, the label of the last
    decision and the remaining error predicted for staying and for it. `last`: by group, the last move and the
    index of its diagnosis.
    """

    settings: Settings = field(default_factory=dict)
    corrections: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, tuple[str, float, float]] = field(default_factory=dict)
    last: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    def after_event(self, settings: Settings | None = None) -> Memory:
        """The memory for the correction after a new event, in which `settings` are in force: corrections stay
        valid, predictions do not."""
        return Memory(settings=settings or {}, corrections=self.corrections)


@dataclass(frozen=True, slots=True)
class Decision:
    """The settings by group, the reason in one line, and the memory for the next diagnosis.

    `added_edges`, `dropped_edges`: by group, changes of the scenario's graph.
    """

    settings: Settings
    reason: str
    memory: Memory
    added_edges: Mapping[str, tuple[Edge, ...]] = field(default_factory=dict)
    dropped_edges: Mapping[str, tuple[Edge, ...]] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """As a JSON object for metrics.jsonl."""
        groups = {group: action.record() for group, action in self.settings.items()}
        return {"reason": self.reason, "groups": groups, "corrections": dict(self.memory.corrections)}
