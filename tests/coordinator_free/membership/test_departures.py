"""The hazard of a block and the survival of its owner, from observations."""

from __future__ import annotations

import random

import pytest
from scipy import integrate, stats

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.departures import DepartureHistory, mean_rate, refuted_share, survival


def key(device: str, incarnation: int = 0) -> BlockKey:
    return BlockKey(device, incarnation)


@pytest.mark.parametrize(("departures", "rounds", "horizon"), [(0, 0, 10), (2, 30, 10), (1, 200, 3)])
def test_the_survival_is_the_mean_over_the_posterior(departures: int, rounds: int, horizon: int) -> None:
    """S = E[exp(-lambda H)] with lambda ~ Gamma(1 + d, 1 / mean + n)."""
    posterior = stats.gamma(1 + departures, scale=1 / (1 / 0.02 + rounds))
    expected, _ = integrate.quad(lambda x: stats.expon.sf(x * horizon) * posterior.pdf(x), 0, 2)
    assert survival(0.02, departures, rounds, horizon) == pytest.approx(expected, rel=1e-4)


def test_departures_lower_the_survival_and_rounds_raise_it() -> None:
    assert survival(0.02, 3, 50, 0) == 1.0
    assert survival(0.02, 2, 50, 10) < survival(0.02, 1, 50, 10) < survival(0.02, 1, 90, 10) < 1
    assert survival(0.02, 1, 50, 20) < survival(0.02, 1, 50, 10)
    assert mean_rate(0, 0, 100) == 0.01


def simulate(hazards: dict[str, float], rounds: int, seed: int = 0) -> DepartureHistory:
    """Owners that depart with their hazard in each round and come back at once under a new incarnation."""
    draw, history = random.Random(seed), DepartureHistory(100)
    incarnation = dict.fromkeys(hazards, 0)
    for round_ in range(rounds):
        history.observe(round_, [key(d, n) for d, n in incarnation.items()], ())
        for device, hazard in hazards.items():
            incarnation[device] += draw.random() < hazard
    return history


@pytest.mark.parametrize("hazard", [0.005, 0.05])
def test_the_hazard_of_the_network_is_recovered(hazard: float) -> None:
    history = simulate({f"d{n}": hazard for n in range(20)}, 1000)
    assert history.rate == pytest.approx(hazard, rel=0.15)
    assert history.survival(key("new"), 10) == pytest.approx(1 / (1 + 10 * hazard), rel=0.1)


def test_the_hazards_of_owners_are_told_apart() -> None:
    history = simulate({"stable": 0.0, "flaky": 0.1}, 1000)
    assert history.survival(key("flaky", 99), 10) == pytest.approx(2.718**-1, rel=0.15)
    assert history.survival(key("stable"), 10) > 0.98


def test_without_observations_the_prior_decides() -> None:
    assert DepartureHistory(100).survival(key("d0"), 10) == pytest.approx(100 / 110)


def test_rounds_count_once_and_skipped_rounds_count_too() -> None:
    one, other = DepartureHistory(100), DepartureHistory(100)
    for round_ in (0, 0, 1, 5):
        one.observe(round_, [key("d0")], ())
    for round_ in range(6):
        other.observe(round_, [key("d0")], ())
    assert one.rate == other.rate == 1 / 105


def test_a_suspicion_counts_with_the_share_of_suspicions_that_were_refuted() -> None:
    history = DepartureHistory(100)
    blocks = [key(f"d{n}") for n in range(6)]
    history.observe(0, blocks, blocks[:4])
    calm, open_ = history.survival(blocks[5], 10), history.survival(blocks[0], 10)
    assert open_ == pytest.approx(calm / 2)  # nothing is known of suspicions yet
    history.observe(1, blocks[1:], [blocks[3]])  # d0 has gone; d1 and d2 have refuted; d3 is still open
    expected = history.survival(blocks[5], 10) * refuted_share(2, 1)
    assert history.survival(blocks[3], 10) == pytest.approx(expected)
    assert history.survival(blocks[1], 10) == history.survival(blocks[5], 10)
    assert history.survival(blocks[3], 0) == 1.0  # without a horizon, survival does not count
