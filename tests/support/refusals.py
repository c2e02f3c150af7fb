"""The error of a scenario that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.scenario.loading import load
from peers.errors import InputError

QUICK = Path(__file__).parents[2] / "scenarios" / "quick.toml"


def refusal(*overrides: str) -> str:
    """The one line with which scenarios/quick.toml is refused with these overrides."""
    with pytest.raises(InputError) as caught:
        load(QUICK, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)
