"""Measures of cells of an experiment, made up."""

from __future__ import annotations

from typing import Any

from emulation.experiments.arms import ORACLE


def point(k: int, loss: float, **other: float) -> dict[str, float]:
    scores = {"retain": 1 - loss, "test": 0.0, "forget": 0.0, "fresh": 0.0, "auc": 0.5, "tpr": 0.0}
    return {"k": k, "loss": loss, **scores, "bytes": 100.0 * k, "steps": k, "seconds": k, "cpu_s": k, **other}


def measured(arm: str, *losses: float, seed: int = 0, setting: str = "paper") -> dict[str, Any]:
    """The measures of a cell, with one point for each loss, at k = 0, 1, ..."""
    return {
        "setting": setting,
        "arm": arm,
        "seed": seed,
        "prefix_sha256": None if arm == ORACLE else "same",
        "curve": [point(k, loss) for k, loss in enumerate(losses)],
        "worst_loss": losses[-1] + 0.1,
        "decisions": [],
        "exits": {},
    }
