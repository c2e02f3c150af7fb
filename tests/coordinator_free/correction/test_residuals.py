"""Residuals: computed by hand, and compared with the true ones of decentralised descent on quadratics."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.correction.residuals import (
    HEADER,
    MAX_CONDITION,
    Means,
    Observables,
    Residuals,
    Size,
    all_priorities,
    consensus,
    contraction,
    effective_eta,
    heterogeneity,
    local,
    mu_from_losses,
    pack,
    priorities,
    residuals,
    unpack,
)


def means(**changed: float) -> Means:
    values = {"energy": 3.0, "curvature": 2.0, "smoothness": 2.0, "mu": 0.5, "eta": 0.1, "disagreement": 0.25}
    values |= {"mean_gradient2": 1.0, "spread2": 2.0}
    return Means(**{**values, **changed})


def observed(gradient: np.ndarray, sketch: np.ndarray | None = None, **changed: float) -> Observables:
    values = {"curvature": 1.0, "smoothness": 1.0, "mu": 0.5, "eta": 0.1, "disagreement": 0.0, **changed}
    sketch = gradient if sketch is None else sketch
    return Observables(energy=float(gradient @ gradient), sketch=sketch, **values)


# -- by hand -----------------------------------------------------------------------------------------------
def test_contraction():
    assert contraction(0.1, 0.5, 2) == pytest.approx(0.95**2)
    assert contraction(0.1, 0.5, 0) == 1
    assert contraction(2.0, 3.0, 1) == 0  # beyond a stable step


def test_the_three_residuals():
    assert local(1.0, 0.5) == 1.0
    assert consensus(2.0, 0.25) == 0.5
    q2 = 0.95**4
    assert heterogeneity(2.0, 0.1, 2, 2.0, 0.5) == pytest.approx(2 * 0.04 * 2 / (1 - q2))
    assert residuals(means(), 2) == pytest.approx((1.0, 0.5, 0.16 / (1 - q2)))


def test_the_total_and_the_largest():
    assert Residuals(1.0, 2.0, 0.5).total == 3.5
    assert Residuals(1.0, 2.0, 0.5).largest == "R_con"
    assert Residuals(1.0, 0.0, 5.0).largest == "R_het"
    assert Residuals(0.0, 0.0, 0.0).largest == "R_loc"


def test_priority_is_curvature_times_energy():
    shares = priorities({"early": means(curvature=1.0, energy=2.0), "late": means(curvature=3.0, energy=2.0)})
    assert shares["early"] == pytest.approx((2.0, 0.25))
    assert shares["late"] == pytest.approx((6.0, 0.75))


def test_priority_per_rank_and_per_parameter():
    """The paper's own S = 0.6346, 1.1394, 2.0552 at r = 4, 8, 16 grows with r; divided by it, it falls."""
    paper = {"early": 0.6346, "mid": 1.1394, "late": 2.0552}
    groups = {g: means(curvature=s, energy=1.0) for g, s in paper.items()}
    sizes = {"early": Size(4, 400), "mid": Size(8, 800), "late": Size(16, 1600)}
    found = all_priorities(groups, sizes)
    assert [p.share for p in found["raw"].values()] == pytest.approx([0.1657, 0.2976, 0.5367], abs=1e-4)
    per_rank = [p.share for p in found["per_rank"].values()]
    assert per_rank == pytest.approx([0.3694, 0.3316, 0.2991], abs=1e-4)
    assert [p.share for p in found["per_parameter"].values()] == pytest.approx(per_rank)


def test_priorities_of_nothing_are_equal():
    shares = priorities({g: means(energy=0.0) for g in ("early", "late")})
    assert [p.share for p in shares.values()] == [0.5, 0.5]


def test_effective_eta_undoes_what_the_optimiser_does_to_a_gradient():
    assert effective_eta(move=0.6, steps=3, gradient=2.0) == pytest.approx(0.1)
    assert effective_eta(move=0.6, steps=3, gradient=0.0) == 0


# -- packed ------------------------------------------------------------------------------------------------
def test_the_means_of_packed_vectors_are_those_of_the_gradients():
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((5, 2, 40))  # devices, groups, numbers
    vectors = [pack([observed(g) for g in device]) for device in gradients]
    found = unpack(np.mean(vectors, axis=0), ["early", "late"])
    for i, name in enumerate(["early", "late"]):
        mean = gradients[:, i].mean(axis=0)
        assert found[name].energy == pytest.approx((gradients[:, i] ** 2).sum() / 5)
        assert found[name].mean_gradient2 == pytest.approx(mean @ mean)
        assert found[name].spread2 == pytest.approx(((gradients[:, i] - mean) ** 2).sum() / 5)


def test_a_poor_sketch_leaves_no_spread_where_all_agree():
    gradient = np.arange(9.0)
    vectors = [pack([observed(gradient, sketch=np.array([1.0, -3.0]))])] * 4
    found = unpack(np.mean(vectors, axis=0), ["all"])["all"]
    assert found.energy == gradient @ gradient
    assert found.spread2 == pytest.approx(0, abs=1e-9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6), st.integers(1, 3))
def test_the_spread_is_never_negative(numbers, count):
    gradients = np.array(numbers).reshape(2, 3)
    vectors = [pack([observed(gradient)] * count) for gradient in gradients]
    names = [f"g{i}" for i in range(count)]
    assert all(m.spread2 >= 0 for m in unpack(np.mean(vectors, axis=0), names).values())


def test_mu_is_bounded_by_the_condition_number():
    vector = pack([observed(np.ones(3), mu=0.0, smoothness=2.0)])
    assert unpack(vector, ["all"])["all"].mu == 2.0 / MAX_CONDITION


@pytest.mark.parametrize("length", [5, 7, 13])
def test_a_vector_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match="cannot be the observables of 2 groups"):
        unpack(np.zeros(length), ["early", "late"])
    assert len(HEADER) == 6


# -- beside the truth: L_i(x) = 1/2 (x - a_i)^T H (x - a_i) ------------------------------------------------
M, D = 6, 4


class Quadratics:
    """M devices, one Hessian, centres `spread` apart, full averaging every `steps` local steps."""

    def __init__(self, curvatures: np.ndarray, spread: float, start: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.h = curvatures
        self.centres = rng.standard_normal((M, len(curvatures)))
        self.centres *= spread
        self.best = self.centres.mean(axis=0)
        self.x = np.tile(self.best + start, (M, 1))

    def gradients(self) -> np.ndarray:
        return self.h * (self.x - self.centres)

    def gap(self, x: np.ndarray) -> float:
        """Mean over the rows of x of the mean loss, above its minimum."""
        return float(0.5 * (self.h * (x - self.best) ** 2).sum(axis=-1).mean())

    def descend(self, eta: float, steps: int) -> None:
        for _ in range(steps):
            self.x = self.x - eta * self.gradients()

    def mix(self, gamma: float) -> None:
        self.x = (1 - gamma) * self.x + gamma * self.x.mean(axis=0)

    def disagreement(self) -> float:
        """(1/M) sum_i sum_j w_ij ||x_i - x_j||^2 with w = 1/M."""
        pairs = self.x[:, None] - self.x[None, :]
        return float((pairs**2).sum() / M**2)

    def means(self, eta: float) -> Means:
        vectors = [
            pack(
                [
                    observed(
                        g,
                        smoothness=self.h.max(),
                        curvature=self.h.max(),
                        mu=self.h.min(),
                        eta=eta,
                        disagreement=self.disagreement(),
                    )
                ]
            )
            for g in self.gradients()
        ]
        return unpack(np.mean(vectors, axis=0), ["all"])["all"]


def test_r_loc_is_the_gap_of_the_mean_where_all_curvatures_are_one():
    toy = Quadratics(np.full(D, 0.7), spread=2.0)
    assert residuals(toy.means(0.1), 1).local == pytest.approx(toy.gap(toy.x))


@given(st.lists(st.floats(0.1, 10.0), min_size=D, max_size=D), st.floats(0.1, 3.0))
def test_r_loc_bounds_the_gap_of_the_mean(curvatures, start):
    toy = Quadratics(np.array(curvatures), spread=1.0, start=start)
    assert residuals(toy.means(0.01), 1).local >= toy.gap(toy.x.mean(axis=0)) * (1 - 1e-6)


@given(st.lists(st.floats(0.1, 10.0), min_size=D, max_size=D), st.floats(0.1, 3.0))
def test_r_con_bounds_the_cost_of_different_copies(curvatures, size):
    toy = Quadratics(np.array(curvatures), spread=1.0)
    toy.x = toy.x + size * np.random.default_rng(1).standard_normal(toy.x.shape)
    cost = toy.gap(toy.x) - toy.gap(toy.x.mean(axis=0))
    assert residuals(toy.means(0.01), 1).consensus >= cost * (1 - 1e-6)


def test_r_con_is_four_times_the_cost_where_all_curvatures_are_one():
    """The cost is 1/2 L mean ||x_i - mean||^2, and D twice that mean: the constant c of Theorem 2."""
    toy = Quadratics(np.full(D, 0.7), spread=1.0)
    toy.x = toy.x + np.random.default_rng(1).standard_normal(toy.x.shape)
    cost = toy.gap(toy.x) - toy.gap(toy.x.mean(axis=0))
    assert residuals(toy.means(0.01), 1).consensus == pytest.approx(4 * cost)


def sustained(spread: float, steps: int, eta: float = 0.02, gamma: float = 0.2) -> tuple[float, float]:
    """What heterogeneity costs in the long run just after the local steps: the true figure and R_het."""
    toy = Quadratics(np.full(D, 0.5), spread)
    for _ in range(400):
        toy.descend(eta, steps)
        toy.mix(gamma)
    toy.descend(eta, steps)
    at_mean = toy.gap(toy.x.mean(axis=0))
    true = toy.gap(toy.x) - at_mean
    toy.x = np.tile(toy.x.mean(axis=0), (M, 1))  # zeta^2 where all hold the same
    return true, residuals(toy.means(eta), steps).heterogeneity


def test_r_het_bounds_the_sustained_cost_of_heterogeneity():
    for steps in (1, 2, 5):
        true, estimate = sustained(1.0, steps)
        assert 0 < true <= estimate


def test_r_het_grows_with_the_spread_as_the_true_cost_does():
    (true, estimate), (true3, estimate3) = sustained(1.0, 2), sustained(3.0, 2)
    assert true3 / true == pytest.approx(9, rel=1e-3)
    assert estimate3 / estimate == pytest.approx(9, rel=1e-3)


def test_r_het_grows_with_local_steps_as_the_true_cost_does():
    costs = [sustained(1.0, steps) for steps in (1, 2, 4, 8)]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(costs))


def test_the_estimates_together_bound_the_mean_gap_all_the_way():
    toy = Quadratics(np.array([0.1, 0.3, 0.5, 1.0]), spread=1.0, start=3.0)
    for _ in range(60):
        toy.descend(0.1, 3)
        assert residuals(toy.means(0.1), 3).total >= toy.gap(toy.x) * (1 - 1e-6)
        toy.mix(0.5)


def test_r_loc_falls_as_theorem_2_says():
    """R_loc = q^(2K) C_init on one curvature."""
    toy = Quadratics(np.full(D, 0.5), spread=0.0)
    first = residuals(toy.means(0.1), 2).local
    for _ in range(7):
        toy.descend(0.1, 2)
    assert residuals(toy.means(0.1), 2).local == pytest.approx(
        contraction(0.1, 0.5, 2) ** 14 * first, rel=1e-5
    )


def test_mu_is_read_off_the_losses_of_a_descent():
    toy = Quadratics(np.full(D, 0.5), spread=0.0)
    losses = []
    for _ in range(24):
        losses.append(toy.gap(toy.x))
        toy.descend(0.1, 1)
    of_three = [losses[k : k + 3] for k in range(0, 24, 3)]
    assert mu_from_losses(of_three, 0.1) == pytest.approx(0.5, rel=1e-6)
    assert mu_from_losses([[loss] for loss in losses], 0.1) == pytest.approx(0.5, rel=1e-6)


def test_over_rounds_the_mean_is_as_many_times_slower_as_there_are_copies():
    over = [[1.0], [0.81], [0.6561]]
    assert mu_from_losses(over, 0.1) == pytest.approx(1.0)
    assert mu_from_losses(over, 0.1, members=5) == pytest.approx(5.0)
    assert mu_from_losses([[1.0, 0.81]] * 3, 0.1, members=5) == pytest.approx(1.0)


def test_the_loss_that_mixing_adds_between_rounds_does_not_lower_mu():
    again = [[1.0, 0.81, 0.6561]] * 4
    assert mu_from_losses(again, 0.1) == pytest.approx(1.0)


def test_mu_is_0_where_the_loss_does_not_fall_or_is_not_known():
    assert mu_from_losses([[1.0, 1.0, 2.0]], 0.1) == 0
    assert mu_from_losses([[1.0]], 0.1) == 0
    assert mu_from_losses([[], ()], 0.1) == mu_from_losses([], 0.1) == 0
    assert mu_from_losses([[1.0, 0.5]], 0.0) == 0
    assert math.isfinite(mu_from_losses([[1.0, 0.0]], 0.1))
