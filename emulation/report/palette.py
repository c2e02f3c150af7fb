"""Colours and line styles of all pictures. Colour-blind readers can tell any two of the colours apart.

tests/emulation/report/test_palette.py measures the smallest difference. Each line also has its own
dashes. Its name stands at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = ("#3088f8", "#f05810", "#205050", "#d870b8", "#801000", "#7018f8", "#809068", "#781090")
DARK = ("#b0c8d8", "#c04000", "#20e880", "#f068f8", "#e8c818", "#a818f8", "#807058", "#307890")
PAPER = {"light": "#ffffff", "dark": "#15181c"}  # backgrounds of the report
DASHES = ((), (6, 3), (2, 2), (8, 3, 2, 3))  # lengths of strokes and gaps in pixels


@dataclass(frozen=True)
class Style:
    """Indices into the colours and into `DASHES`."""

    colour: int
    dash: int


def style(number: int) -> Style:
    """The style of the line with this number: one of 32. Neighbours differ in colour and in dashes."""
    count = len(LIGHT)
    return Style(number % count, (number + number // count) % len(DASHES))


def colour(number: int) -> str:
    """The colour of a line on white paper."""
    return LIGHT[style(number).colour]


def dashes(number: int) -> object:
    """The line style in Matplotlib's form."""
    found = DASHES[style(number).dash]
    return (0, found) if found else "solid"


def css() -> str:
    """Custom properties --c0, --c1, ... for both themes, and the classes of colours and dashes."""
    light, dark = (_properties(colours) for colours in (LIGHT, DARK))
    classes = [f".c{i} {{ --c: var(--c{i}); }}" for i in range(len(LIGHT))]
    classes += [
        f".d{i} {{ stroke-dasharray: {' '.join(map(str, d)) or 'none'}; }}" for i, d in enumerate(DASHES)
    ]
    dark_theme = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return "\n".join([f":root {{ {light} }}", dark_theme, *classes])


def _properties(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {c};" for i, c in enumerate(colours))
