"""The paper's Table II beside the priorities of the first diagnosis."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from emulation.experiments.priorities import compared, priorities, priorities_table


def measured(seed: int, **scores: float) -> dict[str, Any]:
    total = sum(scores.values())
    groups = {
        group: {"S": s, "p": s / total, "p_per_rank": 0.5, "p_per_parameter": 0.25}
        for group, s in scores.items()
    }
    later = {group: {**values, "S": 99.0, "p": 0.9} for group, values in groups.items()}
    decisions = [{"k": 2, "residuals": groups}, {"k": 7, "residuals": later}]
    return {"setting": "paper", "arm": "dominant", "seed": seed, "decisions": decisions}


def test_the_first_diagnosis_of_each_seed_counts() -> None:
    found = priorities([measured(0, early=4.0, mid=1.0), measured(1, early=2.0, mid=2.0)])
    early, mid = found
    assert (early["S"]["mean"], mid["S"]["mean"]) == (3.0, 1.5)
    assert early["p"]["mean"] == pytest.approx((0.8 + 0.5) / 2)
    assert priorities([{**measured(0, early=1.0), "decisions": []}]) == []


@pytest.mark.parametrize(
    ("scores", "kind"),
    [((3, 2, 1), "the opposite"), ((1, 2, 3), "the same"), ((2, 3, 1), "another")],
)
def test_the_order_is_compared_with_the_papers(scores: tuple[int, int, int], kind: str) -> None:
    early, mid, late = map(float, scores)
    found = priorities([measured(0, early=early, mid=mid, late=late)])
    assert compared(found).endswith(f"in the paper: late > mid > early: {kind} order")
    console = Console(width=160, record=True)
    console.print(priorities_table(found, "paper"))
    said = console.export_text()
    assert "2.0552" in said and "0.537" in said and f"{kind} order" in said
