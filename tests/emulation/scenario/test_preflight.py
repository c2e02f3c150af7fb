"""Scenarios that their model or their budget cannot run are refused before the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.scenario.loading import load
from emulation.scenario.preflight import check_against_model
from peers.errors import InputError

QUICK = Path(__file__).parents[3] / "scenarios" / "quick.toml"
SMALL = ("adapter.rank=1", "radio.codec=int4", "radio.budget_bytes=3000")


def test_a_budget_that_cannot_hold_a_manifest_is_refused() -> None:
    check_against_model(load(QUICK, SMALL))
    with pytest.raises(InputError, match=r"budget_bytes: 3000 .* cannot carry a manifest, .* allowed: \d+"):
        check_against_model(load(QUICK, [*SMALL, "adapter.max_devices=60"]))
