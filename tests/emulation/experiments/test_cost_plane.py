"""The gap-cost plane and RI(k)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from emulation.experiments import cost_plane


def measured(arm: str, seed: int, *losses: float) -> dict[str, Any]:
    curve = [{"k": k, "loss": loss} for k, loss in enumerate(losses)]
    return {"setting": "s", "arm": arm, "seed": seed, "curve": curve}


def row(arm: str, seed: int, eg: float, cost: float) -> dict[str, Any]:
    return {"setting": "s", "arm": arm, "seed": seed, "eg": eg, "norm_comm": cost, "norm_total": cost}


ROWS = [row("uniform", s, 0.3 + 0.1 * s, 1.0) for s in (0, 1)] + [row("sync", s, 0.6, 0.5) for s in (0, 1)]


def test_the_improvement_is_relative_to_uniform_of_the_same_seed_and_round() -> None:
    found = cost_plane.improvements(
        [
            measured("uniform", 0, 2.0, 1.0),
            measured("uniform", 1, 4.0, 2.0),
            measured("sync", 0, 1.0, 1.5, 9.0),  # a round more than `uniform`
            measured("sync", 1, 4.0, 1.0),
        ]
    )
    assert found["sync"] == [[(0, 50.0), (1, -50.0)], [(0, 0.0), (1, 50.0)]]
    assert found["uniform"] == [[(0, 0.0), (1, 0.0)]] * 2


def test_no_arm_of_the_front_is_beaten_in_both() -> None:
    assert cost_plane.front([(1.0, 0.3), (0.5, 0.6), (1.2, 0.4), (0.0, 2.0)]) == [
        (0.0, 2.0),
        (0.5, 0.6),
        (1.0, 0.3),
    ]


def test_a_point_has_the_interval_of_its_gap() -> None:
    panel = Figure().subplots()
    cost_plane.draw_plane(panel, ROWS, ["uniform", "sync"], "norm_comm")
    uniform, sync = (np.asarray(line.get_xydata())[0] for line in panel.get_lines()[:6:3])  # then two caps
    assert uniform == pytest.approx([1.0, 0.35]) and sync == pytest.approx([0.5, 0.6])


def test_the_picture_is_written_and_leaves_oracles_out(tmp_path: Path) -> None:
    measures = [measured(arm, s, 2.0, 1.0) for arm in ("uniform", "sync", "oracle") for s in (0, 1)]
    rows = [*ROWS, row("oracle", 0, 0.0, 5.0)]
    cost_plane.write_plane(rows, measures, tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 1000
