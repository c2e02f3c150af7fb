"""What a correction policy sees, may do, remembers and says (method 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from coordinator_free.correction.graph_ladder import Edge, Ladder
from coordinator_free.correction.residuals import Residuals

STAY = ("", "stay")  # the move that is none


@dataclass(frozen=True, slots=True)
class GroupAction:
    """What a policy sets for one layer group until it is asked again.

    steps: n_g local steps a round. prox: lambda_g of 1/2 lambda ||B - B~||^2, B~ the consensus after the
    deletion. gamma: gamma_g of (1 - gamma_g) I + gamma_g W, the mixing strength. period: H_g, the group is
    exchanged every H_g-th round. rung: of the ladder of graphs, 0 is the scenario's.
    """

    steps: int
    prox: float = 0.0
    gamma: float = 1.0
    period: int = 1
    rung: int = 0

    def record(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


Settings = Mapping[str, GroupAction]  # by group, in the layout's order


@dataclass(frozen=True, slots=True)
class Limits:
    """What policies may do. The defaults of n, lambda and gamma are the paper's (method 10)."""

    base: GroupAction = GroupAction(2)  # what `uniform` does
    steps_min: int = 1
    steps_max: int = 2
    prox_min: float = 1e-4  # the first notch above 0
    prox_max: float = 1e-3
    gamma_min: float = 0.4
    period_max: int = 8
    bytes_max: float = 1.0  # of a round, in those of a round of `base`: what `dominant` may spend
    byte_share: float = 0.5  # of the cost of a round of `base`; the rest is compute

    def __post_init__(self) -> None:
        """Raises ValueError for a range that is empty or leaves the base out."""
        if not 1 <= self.steps_min <= self.base.steps <= self.steps_max:
            raise ValueError("steps_min <= base.steps <= steps_max does not hold")
        if not 0 < self.prox_min <= self.prox_max or not 0 <= self.base.prox <= self.prox_max:
            raise ValueError("0 < prox_min <= prox_max does not hold, or base.prox is beyond it")
        if not 0 < self.gamma_min <= self.base.gamma <= 1 or not 1 <= self.base.period <= self.period_max:
            raise ValueError("base.gamma or base.period is out of range")


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group as the network sees it. bytes: of a round that exchanges it over the scenario's graph."""

    residuals: Residuals
    priority: float  # p_g
    mu: float
    eta: float
    bytes: float


@dataclass(frozen=True, slots=True)
class View:
    """All that a policy may look at; the same on every device, and nothing of the leaver's data.

    index: number of this diagnosis. rounds: to the next one. trials: by (group, label) of a move, or STAY,
    how far a trial of one round lowered the loss; for `lookahead` alone. isolated: a device's gradients reach
    its own block alone. averages: copies are averaged, and so hold their owner back; else the owner's
    replaces them.
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
    """What a policy takes from one diagnosis to the next. JSON-able but for its types.

    settings: in force; none: the base. corrections: observed / predicted effect by label of move, smoothed.
    failed: labels of moves that made things worse. expected: by group, the label of what was done and the
    residual predicted without and with it. last: by group, the last move and the index of its diagnosis.
    """

    settings: Settings = field(default_factory=dict)
    corrections: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, tuple[str, float, float]] = field(default_factory=dict)
    last: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    def after_event(self) -> Memory:
        """For the correction that a new event starts: predictions no longer apply, what was learnt does."""
        return Memory(corrections=self.corrections)


@dataclass(frozen=True, slots=True)
class Decision:
    """settings: by group. reason: one line. memory: for the next diagnosis."""

    settings: Settings
    reason: str
    memory: Memory
    added_edges: Mapping[str, tuple[Edge, ...]] = field(
        default_factory=dict
    )  # by group, to the scenario's graph
    dropped_edges: Mapping[str, tuple[Edge, ...]] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """JSON-able, for metrics.jsonl."""
        groups = {group: action.record() for group, action in self.settings.items()}
        return {"reason": self.reason, "groups": groups, "corrections": dict(self.memory.corrections)}
