"""Checks of `adapter.kind`: all that holds for a block B A^T only (docs/adapters.md)."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator_free.correction.policies import SCHEDULES
from emulation.scenario.conflicts import Conflict, Problems, conflict_problems
from emulation.scenario.schema import Scenario

PAPER_LITERAL = "paper-literal"


def adapter_problems(scenario: Scenario) -> Problems:
    """A pair for each problem: the key path, and a text with the value and the allowed values."""
    kind = scenario.adapter.kind
    if kind == "lora":
        return
    conflicts = (*_of_all(scenario), *(_of_vera(scenario) if kind == "vera" else ()))
    yield from conflict_problems(conflicts, f"adapter.kind = {kind!r}", "adapter.kind = 'lora'")


def _of_all(scenario: Scenario) -> Iterable[Conflict]:
    mode = scenario.mixing.mode if scenario.mixing.mode == PAPER_LITERAL else ""
    yield "mixing.mode", mode, "which has no leave projection of dW", "another mode"


def _of_vera(scenario: Scenario) -> Iterable[Conflict]:
    """A measurement of gradients or inputs takes the block for a matrix with r columns."""
    adapter, correction, train = scenario.adapter, scenario.correction, scenario.train
    shared, why = "whose modules share one basis", "which trains one column of each module and no matrix B"
    yield "adapter.bases", adapter.bases if adapter.bases != "orthogonal" else "", shared, "'orthogonal'"
    table = "a table" if not isinstance(adapter.rank, int) else ""
    yield "adapter.rank", table, shared, "one rank for all groups"
    measures = correction.policy if correction.policy not in SCHEDULES else ""
    yield "correction.policy", measures, why, f"one of {', '.join(sorted(SCHEDULES))}"
    yield "correction.fisher", correction.fisher, why, "false"
    yield "train.fisher_every", train.fisher_every, why, "0"
    yield "correction.refit", correction.refit, why, "0"
    yield "correction.projection", correction.projection, why, "false"
    yield "correction.ewc", correction.ewc, why, "0"
    yield "privacy", scenario.privacy.on, why, "no privacy"
