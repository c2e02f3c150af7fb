"""Residuals: computed by hand, and compared with the true ones of decentralised descent on quadratics."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.correction.residuals import (
    COPIES_PART,
    HEADER,
    LEAST_RATE,
    MAX_CONDITION,
    Means,
    Observables,
    Residuals,
    Size,
    all_priorities,
    consensus,
    contraction,
    copies_size,
    effective_eta,
    heterogeneity,
    local,
    mu_from_gap,
    pack,
    priorities,
    rate_from_gaps,
    report_bytes,
    residuals,
    sampling_noise,
    unpack,
)


def means(**changed: float) -> Means:
    values = {"energy": 3.0, "curvature": 2.0, "smoothness": 2.0, "gap": 3.0, "mu": 0.5, "rate": 0.05}
    values |= {"eta": 0.1, "disagreement": 0.25, "mean_gradient2": 1.0, "spread2": 2.0}
    return Means(**{**values, **changed})


def observed(
    gradient: np.ndarray,
    sketch: np.ndarray | None = None,
    copies: np.ndarray | None = None,
    rate: float | None = 0.05,
    **changed: float,
) -> Observables:
    """Of a device with mu = 1/2, unless a gap is given. Copies are in full; zeros fill the sketch."""
    energy = float(gradient @ gradient)
    values = {"noise": 0.0, "curvature": 1.0, "smoothness": 1.0, "gap": energy, "eta": 0.1, **changed}
    sketch = gradient if sketch is None else sketch
    if copies is not None:
        sketch = np.pad(sketch, (0, max(COPIES_PART * len(copies) - len(sketch), 0)))
    shown = np.zeros(copies_size(len(sketch))) if copies is None else copies
    return Observables(energy=energy, rate=rate, sketch=sketch, copies=shown, **values)


# -- by hand -----------------------------------------------------------------------------------------------
def test_contraction():
    assert contraction(0.05, 2) == pytest.approx(0.95**2)
    assert contraction(0.05, 0) == 1
    assert contraction(6.0, 1) == 0  # beyond a stable step


def test_the_three_residuals():
    assert local(1.0, 0.5) == 1.0
    assert consensus(2.0, 0.25) == 0.5
    q2 = 0.95**4
    assert heterogeneity(2.0, 0.1, 2, 2.0, 0.05) == pytest.approx(2 * 0.04 * 2 / (1 - q2))
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
    found = unpack(np.mean(vectors, axis=0), ["early", "late"], 5)
    for i, name in enumerate(["early", "late"]):
        mean = gradients[:, i].mean(axis=0)
        assert found[name].energy == pytest.approx((gradients[:, i] ** 2).sum() / 5)
        assert found[name].mean_gradient2 == pytest.approx(mean @ mean)
        assert found[name].spread2 == pytest.approx(((gradients[:, i] - mean) ** 2).sum() / 5)


@pytest.mark.parametrize("size", [16, 17, 18, 19, 256])
def test_a_sketch_may_have_any_size(size):
    rng = np.random.default_rng(0)
    gradient, copies = rng.standard_normal(size), rng.standard_normal(copies_size(size))
    vector = pack([observed(gradient, copies=copies)])
    assert unpack(vector, ["all"], 1)["all"].mean_gradient2 == pytest.approx(gradient @ gradient)
    assert report_bytes(1, size) == 4 * len(vector)


def test_a_poor_sketch_leaves_no_spread_where_all_agree():
    gradient = np.arange(9.0)
    vectors = [pack([observed(gradient, sketch=np.array([1.0, -3.0]))])] * 4
    found = unpack(np.mean(vectors, axis=0), ["all"], 4)["all"]
    assert found.energy == gradient @ gradient
    assert found.spread2 == pytest.approx(0, abs=1e-9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6), st.integers(1, 3))
def test_the_spread_is_never_negative(numbers, count):
    gradients = np.array(numbers).reshape(2, 3)
    vectors = [pack([observed(gradient, noise=2.0)] * count) for gradient in gradients]
    names = [f"g{i}" for i in range(count)]
    for found in unpack(np.mean(vectors, axis=0), names, 2).values():
        assert found.spread2 >= 0
        assert found.mean_gradient2 >= 0


def test_mu_is_bounded_by_the_condition_number():
    vector = pack([observed(np.ones(3), gap=1e9, smoothness=2.0)])
    assert unpack(vector, ["all"], 1)["all"].mu == 2.0 / MAX_CONDITION


def test_all_groups_share_the_gap_of_the_loss():
    vectors = [pack([observed(np.ones(3), gap=4.0), observed(np.full(3, 2.0), gap=4.0)])] * 2
    found = unpack(np.mean(vectors, axis=0), ["early", "late"], 2)
    assert sum(residuals(m, 1).local for m in found.values()) == pytest.approx(4.0)
    assert residuals(found["late"], 1).local == pytest.approx(3.2)


def test_the_noise_of_sampled_examples_is_subtracted():
    """Of M equal gradients with noise 1.5 each, the mean gradient has a noise of 1.5 / M."""
    vectors = [pack([observed(np.array([3.0, 4.0, 0.0]), noise=1.5)])] * 3
    found = unpack(np.mean(vectors, axis=0), ["all"], 3)["all"]
    assert found.energy == pytest.approx(25 - 1.5)
    assert found.mean_gradient2 == pytest.approx(23.5)  # 25 - 0.5 is more than E_g
    assert found.spread2 == pytest.approx(0)


def test_a_rate_that_no_device_knows_is_eta_mu_and_others_are_averaged():
    gradient = np.ones(4)
    unknown = unpack(pack([observed(gradient, rate=None, eta=0.2)]), ["all"], 1)["all"]
    assert unknown.rate == pytest.approx(0.2 * unknown.mu)
    some = [pack([observed(gradient, rate=rate)]) for rate in (None, 0.1, 0.3)]
    assert unpack(np.mean(some, axis=0), ["all"], 3)["all"].rate == pytest.approx(0.2)
    flat = unpack(pack([observed(gradient, rate=0.0)]), ["all"], 1)["all"]
    assert flat.rate == LEAST_RATE


def test_the_disagreement_is_the_mean_square_distance_of_two_copies():
    rng = np.random.default_rng(0)
    copies = 5.0 + rng.standard_normal((6, 4))
    vectors = [pack([observed(np.ones(4 * COPIES_PART), copies=own)]) for own in copies]
    found = unpack(np.mean(vectors, axis=0), ["all"], 6)["all"]
    pairs = copies[:, None] - copies[None, :]
    assert found.disagreement == pytest.approx((pairs**2).sum() / 36)


@pytest.mark.parametrize("length", [5, 7, 13, 2 * 9])
def test_a_vector_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match="cannot be the observables of 2 groups"):
        unpack(np.zeros(length), ["early", "late"], 1)
    assert len(HEADER) == 9


def test_the_noise_of_a_sample_is_the_mean_square_error_of_its_mean():
    """Over all pairs of 6 numbers, drawn without replacement."""
    numbers = np.random.default_rng(0).standard_normal((6, 3))
    found, true = [], []
    for i, j in combinations(range(6), 2):
        shares = numbers[[i, j]] / 2
        found.append(sampling_noise(shares @ shares.T, 6))
        true.append(float(np.square(shares.sum(axis=0) - numbers.mean(axis=0)).sum()))
    assert np.mean(found) == pytest.approx(np.mean(true))


def test_all_examples_and_a_single_one_show_no_noise():
    shares = np.random.default_rng(0).standard_normal((4, 3))
    assert sampling_noise(shares @ shares.T, 4) == 0
    assert sampling_noise(shares[:1] @ shares[:1].T, 9) == 0


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

    def means(self, eta: float) -> Means:
        vectors = [
            pack(
                [
                    observed(
                        g,
                        smoothness=self.h.max(),
                        curvature=self.h.max(),
                        gap=float(g @ g) / (2 * self.h.min()),
                        rate=eta * self.h.min(),
                        eta=eta,
                        copies=x,
                    )
                ]
            )
            for g, x in zip(self.gradients(), self.x, strict=True)
        ]
        return unpack(np.mean(vectors, axis=0), ["all"], M)["all"]


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
    assert residuals(toy.means(0.1), 2).local == pytest.approx(contraction(0.05, 2) ** 14 * first, rel=1e-5)


def test_mu_is_that_of_the_polyak_lojasiewicz_inequality():
    toy = Quadratics(np.full(D, 0.5), spread=0.0)
    assert mu_from_gap(float(np.square(toy.gradients()[0]).sum()), toy.gap(toy.x)) == pytest.approx(0.5)
    assert math.isfinite(mu_from_gap(1.0, 0.0))


def test_the_rate_is_read_off_the_losses_of_a_descent():
    toy = Quadratics(np.full(D, 0.5), spread=0.0)
    gaps = []
    for _ in range(24):
        gaps.append(toy.gap(toy.x))
        toy.descend(0.1, 1)
    of_three = [gaps[k : k + 3] for k in range(0, 24, 3)]
    assert rate_from_gaps(of_three) == pytest.approx(0.05, rel=1e-6)
    assert rate_from_gaps([[gap] for gap in gaps]) == pytest.approx(0.05, rel=1e-6)


def test_losses_that_are_not_counted_from_their_floor_hide_the_rate():
    gaps = [[2.0 * 0.81**k for k in range(4)]]
    assert rate_from_gaps(gaps) == pytest.approx(0.1)
    on_the_floor = rate_from_gaps([[1.53 + gap for gap in own] for own in gaps])
    assert on_the_floor is not None and on_the_floor < 0.06


def test_over_rounds_the_mean_is_as_many_times_slower_as_there_are_copies():
    over = [[1.0], [0.81], [0.6561]]
    assert rate_from_gaps(over) == pytest.approx(0.1)
    assert rate_from_gaps(over, members=5) == pytest.approx(0.5)
    assert rate_from_gaps([[1.0, 0.81]] * 3, members=5) == pytest.approx(0.1)


def test_the_loss_that_mixing_adds_between_rounds_does_not_lower_the_rate():
    again = [[1.0, 0.81, 0.6561]] * 4
    assert rate_from_gaps(again) == pytest.approx(0.1)


def test_the_rate_is_0_where_the_loss_does_not_fall_and_none_where_it_is_not_known():
    assert rate_from_gaps([[1.0, 1.0, 2.0]]) == 0
    assert rate_from_gaps([[1.0]]) is None
    assert rate_from_gaps([[], ()]) is rate_from_gaps([]) is None
    assert rate_from_gaps([[1.0, 0.0]]) is not None  # the least gap bounds the logarithm
