"""The figure of an experiment: intervals over seeds, and a panel that shows who forgets nothing."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from emulation.experiments import plot
from emulation.experiments.statistics import interval

GAINS = {"oracle": 0.0, "uniform": 0.0, "naive": 0.9}


def measure(arm: str, seed: int) -> dict[str, Any]:
    """Both arms lose alike and retain alike. `naive` still knows all facts of the leaver."""
    points = [
        {"k": k, "loss": 2.0 - k / 10 + seed, "retain": 0.5 + k / 20, "forget": GAINS[arm] + 0.02 * seed}
        for k in range(10)
    ]
    return {"arm": arm, "seed": seed, "setting": "s", "curve": points, "worst_loss": None}


@pytest.fixture(scope="module")
def panels() -> list[Any]:
    axes = list(Figure().subplots(1, 3))
    plot.draw_setting(axes, [measure(arm, seed) for arm in GAINS for seed in (0, 1, 2)])
    return axes


def test_the_forgetting_panel_tells_naive_from_the_others(panels: list[Any]) -> None:
    uniform, naive, oracle = panels[2].get_lines()
    assert (uniform.get_label(), naive.get_label(), oracle.get_label()) == ("uniform", "naive", "oracle")
    assert uniform.get_ydata() == pytest.approx([0.02] * 10)
    assert naive.get_ydata() == pytest.approx([0.92] * 10)


def test_every_axis_has_a_label(panels: list[Any]) -> None:
    labels = [panel.get_ylabel().split(" (")[0] for panel in panels]
    assert labels == ["nats per token", "accuracy", "accuracy"]


def test_lines_that_coincide_can_be_told_apart(panels: list[Any]) -> None:
    uniform, naive = panels[1].get_lines()[:2]
    assert list(uniform.get_ydata()) == list(naive.get_ydata())
    assert to_hex(uniform.get_color()) != to_hex(naive.get_color())
    assert uniform.get_linestyle() != naive.get_linestyle()
    assert uniform.get_marker() != naive.get_marker()


def test_the_band_is_the_interval_of_the_mean() -> None:
    curves = [[(0, 1.0), (5, 2.0)], [(0, 3.0), (5, 2.0)]]
    found, expected = plot.band(curves), interval([1.0, 3.0])
    assert expected is not None
    assert found == [(0, 2.0, expected.low, expected.high), (5, 2.0, 2.0, 2.0)]


def test_one_seed_has_no_band() -> None:
    assert plot.band([[(0, 1.5)]]) == [(0, 1.5, 1.5, 1.5)]
