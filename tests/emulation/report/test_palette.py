"""Colour-blind readers can tell the colours of the pictures apart."""

from __future__ import annotations

from itertools import pairwise

import pytest

from emulation.report import palette
from tests.support import colour_vision

THEMES = {"light": palette.LIGHT, "dark": palette.DARK}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", colour_vision.VISION)
def test_any_two_colours_differ(theme: str, vision: str) -> None:
    assert colour_vision.smallest_difference(THEMES[theme], vision) > 30


def test_the_measure_finds_colours_that_look_alike() -> None:
    """The colours of d1 and d4 of version 0.1: orange and brown are one colour without red cones."""
    assert colour_vision.smallest_difference(("#d55e00", "#8a6d00"), "protanopia") < 3
    assert colour_vision.smallest_difference(("#d55e00", "#8a6d00"), "full") > 25


@pytest.mark.parametrize("theme", THEMES)
def test_lines_have_the_contrast_that_wcag_asks_for(theme: str) -> None:
    paper = palette.PAPER[theme]
    assert min(colour_vision.contrast(colour, paper) for colour in THEMES[theme]) >= 3


def test_no_two_lines_have_the_same_style() -> None:
    styles = [palette.style(i) for i in range(32)]
    assert len(set(styles)) == 32
    for one, other in pairwise(styles):
        assert one.colour != other.colour and one.dash != other.dash


def test_both_themes_are_in_the_style_sheet() -> None:
    light, dark = palette.css().split("\n")[:2]
    assert f"--c0: {palette.LIGHT[0]};" in light
    assert dark.startswith("@media (prefers-color-scheme: dark)") and f"--c7: {palette.DARK[7]};" in dark
