"""The leaver's facts by rounds after the deletion."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from emulation.experiments.re_emergence import MOST_SHOWN, re_emergence, re_emergence_table


def measured(arm: str, seed: int, *forget: float) -> dict[str, Any]:
    curve = [{"k": 2 * i, "forget": value} for i, value in enumerate(forget)]
    return {"setting": "s", "arm": arm, "seed": seed, "curve": curve}


MEASURED = [
    measured("oracle", 0, 0.5, 0.05),
    measured("oracle", 1, 0.5, 0.05),
    measured("fisher", 0, 0.0, 0.0, 0.05),
    measured("fisher", 1, 0.0, 0.175, 0.05),
]


def test_a_peak_between_the_deletion_and_the_end_is_found() -> None:
    (found,) = re_emergence(MEASURED)
    assert found["arm"] == "fisher"
    assert found["by_k"] == [
        {"k": k, "forget": pytest.approx(v)} for k, v in ((0, 0), (2, 0.0875), (4, 0.05))
    ]
    assert found["highest"]["mean"] == pytest.approx((0.05 + 0.175) / 2)
    assert found["above"]["mean"] == pytest.approx((0.0 + 0.125) / 2)
    assert found["peak"] == {"forget": 0.175, "seed": 1, "k": 2}


def test_of_equal_peaks_the_first_one_counts() -> None:
    (found,) = re_emergence([measured("fisher", s, 0.0, 0.1, 0.1) for s in (0, 1)])
    assert found["peak"] == {"forget": 0.1, "seed": 0, "k": 2} and found["above"] is None


def test_the_table_shows_the_first_and_the_last_k() -> None:
    found = re_emergence([measured("fisher", 0, *(i / 100 for i in range(20)))])
    console = Console(width=160, record=True)
    console.print(re_emergence_table(found, "s"))
    said = console.export_text()
    assert said.count("k = ") == MOST_SHOWN
    assert "k = 0" in said and "k = 38" in said and "0.190" in said
