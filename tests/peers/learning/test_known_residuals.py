"""The diagnosis of devices whose residuals are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator_free.correction.residuals import Means
from tests.support.known_residuals import Known, World

ALL = Known(away=2.5, spread=4.0, copies=0.8)
SEEDS = range(8)
DOMINATED = {
    "R_loc": Known(away=4.0, spread=0.5, copies=0.1),
    "R_con": Known(away=0.3, spread=0.5, copies=2.0),
    "R_het": Known(away=0.3, spread=6.0, copies=0.1, eta=0.05, steps=8),
}


def means(known: Known) -> list[Means]:
    return [World(known, seed).measured() for seed in SEEDS]


@pytest.mark.parametrize("name", ["local", "consensus", "heterogeneity"])
def test_each_residual_is_recovered_within_a_fifth(name):
    """Averaged over 8 draws of 16 of 48 examples, in a world where the three are of one size."""
    worlds = [World(ALL, seed) for seed in SEEDS]
    found = np.mean([getattr(world.diagnosed(), name) for world in worlds])
    true = np.mean([getattr(world.true(), name) for world in worlds])
    assert found == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize("residual", list(DOMINATED))
def test_a_world_that_one_residual_dominates_is_named_so(residual):
    for seed in SEEDS:
        world = World(DOMINATED[residual], seed)
        assert world.true().largest == world.diagnosed().largest == residual


def test_the_constants_are_recovered():
    known = replace(ALL, copies=0.0)
    found = means(known)
    assert np.mean([m.mu for m in found]) == pytest.approx(known.mu, rel=0.1)
    assert np.mean([m.smoothness for m in found]) == pytest.approx(known.smoothness, rel=0.2)
    assert np.mean([m.eta for m in found]) == pytest.approx(known.eta, rel=0.1)
    assert np.mean([m.rate for m in found]) == pytest.approx(known.eta * known.mu, rel=0.1)


def test_the_disagreement_is_that_of_the_network_and_not_of_neighbours():
    """On a ring, a slow wave of copies differs little between neighbours."""
    world = World(ALL, 0)
    wave = np.cos(2 * np.pi * np.arange(6) / 6)
    world.x = world.x.mean(axis=0) + np.outer(wave, np.eye(world.x.shape[1])[0])
    d0 = float(np.square(world.x - world.x.mean(axis=0)).sum()) / 6
    neighbours = np.mean([np.square(world.x[i] - world.x[(i + 1) % 6]).sum() for i in range(6)])
    assert world.measured().disagreement == pytest.approx(2 * d0)
    assert neighbours < 0.6 * 2 * d0


def test_the_diagnosis_follows_a_descent():
    """R_loc falls with the gap of the mean, round after round."""
    world = World(replace(ALL, spread=0.5, copies=0.0), 0)
    for _ in range(6):
        world.descend()
        world.mix()
    assert world.diagnosed().local == pytest.approx(world.true().local, rel=0.3)
