"""Diagnosis, compared with autograd, a dense eigenvalue solver and exact inner products."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from coordinator_free.correction.residuals import copies_size, group_numbers, pack, report_bytes
from coordinator_free.identifiers import BlockKey
from peers.learning.count_sketch import Sketcher
from peers.learning.diagnosis import Options, diagnose, step_flops
from peers.learning.learner import Learner
from peers.tasks import Encoded, Example, encode
from tests.support.learners import OTHERS, OWN, block, fill, joined, same, small_learner, small_loaded
from tests.support.tiny_models import WORDS, Family

FAMILIES = ["llama", "qwen2", "gpt2"]
ENDINGS = ["red", "green two", "blue one red"]  # examples differ in length and in their share of the tokens
TEXTS = [Example(f"{WORDS[i % 9]} {WORDS[i % 7 + 9]} is", ENDINGS[i % 3], ends=i % 2 == 0) for i in range(20)]
BATCH = encode(TEXTS, small_loaded().tokenizer, 16)
SCALE = 4.0
MADE_WITH: WeakKeyDictionary[Learner, tuple[Family, dict[str, Any]]] = WeakKeyDictionary()  # for `swapped`


def blocks(learner: Learner) -> dict:
    return {key: learner._blocks[key] for key in learner._shown()}


def measure(learner: Learner, batch: Encoded = BATCH, size: int = 256, seed: int = 0, **options):
    sketcher = Sketcher(seed, learner.layout, size)
    draw = np.random.default_rng(seed)
    return diagnose(
        learner.model, learner.layout, SCALE, blocks(learner), batch, sketcher, Options(**options), draw
    )


def own_gradients(learner: Learner, batch: Encoded) -> dict[str, torch.Tensor]:
    """Gradients of the own block, as in a local step."""
    model = learner.model
    for gradient in learner._adapter.gradients.values():
        gradient.zero_()
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    return {group: g.clone() for group, g in learner._adapter.gradients.items()}


def all_gradients(learner: Learner, batch: Encoded, labels=None) -> dict[str, torch.Tensor]:
    """Gradients w.r.t. all blocks, one vector by group: each block in turn becomes the own one."""
    found: dict[str, list[torch.Tensor]] = {group: [] for group in learner.groups}
    labels = batch.labels if labels is None else labels
    for key in blocks(learner):
        other = swapped(learner, key)
        own = own_gradients(other, Encoded(batch.input_ids, batch.attention_mask, labels))
        for group, gradient in own.items():
            found[group].append(gradient.flatten())
    return {group: torch.cat(parts) for group, parts in found.items()}


def swapped(learner: Learner, own: BlockKey) -> Learner:
    """The same blocks, with another own block."""
    family, sections = MADE_WITH[learner]
    made = small_learner(family, adapter=sections)
    for slot, key in enumerate([OWN, *OTHERS]):
        if key == own:
            made.set_own(key, slot)
        else:
            made.add_block(key, slot)
        for group, values in block(learner, key).items():
            made.write(key, group, values)
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def learner(request) -> Learner:
    return with_family(request.param)


def with_family(family: Family, **adapter) -> Learner:
    made = joined(family, adapter=adapter)
    MADE_WITH[made] = family, adapter
    return made


# -- gradients of all blocks ---------------------------------------------------------------------------------
def test_gradients_of_folded_blocks_equal_gradients_in_training(learner):
    measured = measure(learner).groups
    exact = all_gradients(learner, BATCH)
    for group in learner.groups:
        assert measured[group].energy == pytest.approx(float(exact[group].square().sum()), rel=1e-4)


def test_energy_is_measured_for_each_block(learner):
    own = own_gradients(learner, BATCH)
    for group, found in measure(learner).groups.items():
        assert found.blocks.keys() == {OWN, *OTHERS}
        assert found.blocks[OWN] == pytest.approx(float(own[group].square().sum()), rel=1e-4)
        assert sum(found.blocks.values()) == pytest.approx(found.energy)


def test_the_sketch_equals_the_sketch_of_the_gradient(learner):
    sketcher, exact = Sketcher(0, learner.layout, 256), all_gradients(learner, BATCH)
    for group, found in measure(learner).groups.items():
        shape = learner.layout.rows(group), learner.layout.rank(group)
        parts = exact[group].split(shape[0] * shape[1])
        keys = list(blocks(learner))
        expected = sum(
            sketcher.sketch(key, group, part.view(shape)) for key, part in zip(keys, parts, strict=True)
        )
        np.testing.assert_allclose(found.sketch, expected, atol=1e-4 * np.abs(expected).max())


def test_folded_and_apart_measure_the_same():
    folded, apart = joined(), joined(isolation={"leak": 1.0})
    for group, found in measure(folded).groups.items():
        other = measure(apart).groups[group]
        assert found.energy == pytest.approx(other.energy, rel=1e-4)
        assert found.curvature == pytest.approx(other.curvature, rel=1e-4)


def test_the_loss_equals_the_loss_of_a_local_step(learner):
    output = learner.model(
        input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask, labels=BATCH.labels
    )
    assert measure(learner).loss == pytest.approx(float(output.loss.detach()), rel=1e-5)


def test_ranks_may_differ_by_group():
    learner = with_family("llama", rank={"early": 1, "mid": 2, "late": 3})
    exact = all_gradients(learner, BATCH)
    for group, found in measure(learner).groups.items():
        assert found.energy == pytest.approx(float(exact[group].square().sum()), rel=1e-4)


def test_gradients_are_not_zero_before_training():
    """At B = 0 a block still has a gradient."""
    learner = small_learner()
    learner.set_own(OWN, 0)
    assert all(found.energy > 0 for found in measure(learner).groups.values())


def test_paper_literal_measures_its_own_block():
    learner = joined(mixing={"mode": "paper-literal"})
    assert all(found.blocks.keys() == {OWN} for found in measure(learner).groups.values())


# -- curvature -----------------------------------------------------------------------------------------------
def example_gradients(learner: Learner, rows: list[torch.Tensor], labels: torch.Tensor) -> dict:
    """Gradients by group, [m, p], of m times each micro-batch's share of the mean loss."""
    tokens = (labels[:, 1:] != -100).sum()
    found: dict[str, list[torch.Tensor]] = {group: [] for group in learner.groups}
    for row in rows:
        part = Encoded(BATCH.input_ids[row], BATCH.attention_mask[row], labels[row])
        share = (part.labels[:, 1:] != -100).sum() / tokens * len(rows)
        for group, gradient in all_gradients(learner, part).items():
            found[group].append(gradient * share)
    return {group: torch.stack(parts).double() for group, parts in found.items()}


def dense_lambda_max(gradients: torch.Tensor) -> float:
    """The largest eigenvalue of the p x p matrix F = (1/m) sum g g^T."""
    return float(torch.linalg.eigvalsh(gradients.T @ gradients / len(gradients))[-1])


def test_lambda_max_equals_the_value_of_the_dense_fisher_matrix():
    learner = with_family("llama", rank=1)
    rows = list(torch.arange(len(BATCH)).split(1))
    exact = example_gradients(learner, rows, BATCH.labels)
    for group, found in measure(learner).groups.items():
        assert exact[group].shape[1] < 700
        assert found.curvature == pytest.approx(dense_lambda_max(exact[group]), rel=1e-4)


def test_micro_batches_count_as_one_gradient_each():
    learner = with_family("llama", rank=1)
    twice = Encoded(*(torch.cat([t, t.roll(1, 0), t[:3]]) for t in astuple(BATCH)))
    found = measure(learner, twice, microbatch=2)
    single = measure(learner, twice.rows(torch.arange(2 * (len(twice) // 2))))
    for group, m in found.groups.items():
        assert m.energy == pytest.approx(single.groups[group].energy, rel=1e-4)
        assert m.energy <= m.curvature * (1 + 1e-4)  # F >= g g^T
        assert m.curvature <= single.groups[group].curvature * (1 + 1e-4)  # means spread less


def astuple(batch: Encoded):
    return batch.input_ids, batch.attention_mask, batch.labels


def test_labels_from_the_model_change_the_fisher_and_nothing_else(learner):
    data, model = measure(learner), measure(learner, labels="model")
    for group in learner.groups:
        assert model.groups[group].energy == data.groups[group].energy
        assert (model.groups[group].sketch == data.groups[group].sketch).all()
        assert model.groups[group].curvature != data.groups[group].curvature
    assert model.cost.flops > data.cost.flops


def test_labels_from_the_model_are_drawn_by_the_seed():
    learner = joined()
    one, same_seed, other = (measure(learner, labels="model", seed=s).groups["late"] for s in (1, 1, 2))
    assert one.curvature == same_seed.curvature != other.curvature


def test_a_certain_model_draws_the_predicted_labels():
    """Predicted labels have loss 0, so the Fisher is 0. The data's labels differ and have a gradient."""
    learner = joined()
    with torch.no_grad():
        learner.model.base_model.model.lm_head.weight.mul_(1e6)
    drawn, data = measure(learner, labels="model"), measure(learner)
    assert drawn.groups["late"].curvature < 1e-6 * data.groups["late"].curvature


@pytest.mark.parametrize(
    ("count", "microbatch", "said"), [(16, 2, "8 micro-batches of 2; 16 are needed"), (0, 1, "0 examples")]
)
def test_too_few_examples_are_refused(count, microbatch, said):
    with pytest.raises(ValueError, match=said):
        measure(joined(), BATCH.rows(torch.arange(count)), microbatch=microbatch)


def test_a_device_without_blocks_is_refused():
    with pytest.raises(ValueError, match="without blocks"):
        measure(small_learner())


# -- side effects and cost -----------------------------------------------------------------------------------
def test_a_diagnosis_changes_nothing():
    learner = joined()
    learner.train(0, 2, rehearse=False)
    before = {key: block(learner, key) for key in [OWN, *OTHERS]}
    gradients = {g: v.clone() for g, v in learner._adapter.gradients.items()}
    measure(learner)
    assert all(same(before[key], block(learner, key)) for key in [OWN, *OTHERS])
    assert same(gradients, learner._adapter.gradients)
    assert not any(m._forward_hooks for m in learner.model.modules())


def test_training_is_the_same_with_and_without_a_diagnosis():
    one, other = joined(), joined()
    measure(other)
    for learner in (one, other):
        learner.train(0, 3, rehearse=False)
    assert same(block(one, OWN), block(other, OWN))


def test_hooks_are_removed_after_an_error():
    learner = joined()
    with pytest.raises(IndexError):
        measure(learner, Encoded(BATCH.input_ids + 10**6, BATCH.attention_mask, BATCH.labels))
    assert not any(m._forward_hooks for m in learner.model.modules())


def test_a_diagnosis_costs_about_a_local_step():
    learner = joined()
    cost = measure(learner).cost
    step = step_flops(learner.layout, BATCH.input_ids.numel())
    assert 0.5 * step < cost.flops < 2 * step
    assert cost.seconds > 0
    assert cost.bytes == report_bytes(3, 256) == 4 * 3 * (9 + 256 + 64)


def test_the_observables_fit_into_a_report():
    found = measure(joined(), size=64)
    copies = np.zeros(copies_size(64))
    told = pack([g.observables(gap=0.5, rate=0.1, eta=0.01, copies=copies) for g in found.groups.values()])
    assert told.shape == (3 * group_numbers(64),)
    late = found.groups["late"]
    assert late.observables(0.5, None, 0.01, copies).smoothness == late.smoothness < late.curvature


def test_a_sample_of_the_examples_states_its_noise():
    """The noise of 10 of 20 examples, averaged over draws, is the mean excess of the measured energy."""
    learner = joined()
    texts = [Example(f"{WORDS[i % 9]} {WORDS[i % 7 + 9]} is", WORDS[i % 5], ends=False) for i in range(20)]
    batch = encode(texts, small_loaded().tokenizer, 16)  # one answered token each, so all count alike
    exact = {group: found.energy for group, found in measure(learner, batch).groups.items()}
    drawn = [torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:10] for seed in range(30)]
    samples = [measure(learner, batch.rows(rows), population=20).groups for rows in drawn]
    for group, energy in exact.items():
        noise = np.mean([found[group].noise for found in samples])
        excess = np.mean([found[group].energy for found in samples]) - energy
        assert noise == pytest.approx(excess, rel=0.4)
        assert measure(learner, batch).groups[group].noise == 0


def test_a_sample_inflates_the_curvature_and_this_is_subtracted():
    learner = joined()
    few = BATCH.rows(torch.arange(5))
    for group, found in measure(learner, few, population=20).groups.items():
        assert 0 < found.curvature < measure(learner, few).groups[group].curvature


# -- sketches ------------------------------------------------------------------------------------------------
def vectors(learner: Learner, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Two correlated gradients of the late group, and their inner product."""
    draw = torch.Generator().manual_seed(seed)
    shape = learner.layout.rows("late"), learner.layout.rank("late")
    x = torch.randn(shape, generator=draw)
    y = 0.7 * x + 0.5 * torch.randn(shape, generator=draw)
    return x, y, float((x * y).sum())


def test_inner_products_of_sketches_are_unbiased():
    """Over 400 seeds the mean is within 4 standard errors, sqrt((|x|^2 |y|^2 + <x,y>^2) / m / 400)."""
    layout = joined().layout
    x, y, exact = vectors(joined())
    m, seeds = 64, 400
    found = []
    for seed in range(seeds):
        sketcher = Sketcher(seed, layout, m)
        found.append(sketcher.sketch(OWN, "late", x) @ sketcher.sketch(OWN, "late", y))
    bound = float((x.square().sum() * y.square().sum() + exact**2) / m)
    assert abs(np.mean(found) - exact) < 4 * (bound / seeds) ** 0.5
    assert np.var(found) < 1.3 * bound


def test_one_sketch_of_256_numbers_is_within_a_quarter():
    layout = joined().layout
    x, y, exact = vectors(joined())
    sketcher = Sketcher(0, layout, 256)
    assert sketcher.sketch(OWN, "late", x) @ sketcher.sketch(OWN, "late", y) == pytest.approx(exact, rel=0.25)


def test_a_sketch_is_linear_and_the_same_on_every_device():
    layout = joined().layout
    x, y, _ = vectors(joined())
    one, other = Sketcher(3, layout, 64), Sketcher(3, layout, 64)
    together = one.sketch(OWN, "late", x + 2 * y)
    apart = other.sketch(OWN, "late", x) + 2 * other.sketch(OWN, "late", y)
    np.testing.assert_allclose(together, apart, atol=1e-4)
    one.forget_block(OWN)
    assert (one.sketch(OWN, "late", x) == other.sketch(OWN, "late", x)).all()


def test_blocks_groups_and_seeds_are_projected_differently():
    layout = joined().layout
    x, _, _ = vectors(joined())
    base = Sketcher(0, layout, 64).sketch(OWN, "late", x)
    assert not np.allclose(base, Sketcher(0, layout, 64).sketch(OTHERS[0], "late", x))
    assert not np.allclose(base, Sketcher(1, layout, 64).sketch(OWN, "late", x))
    assert not np.allclose(base, Sketcher(0, layout, 64).sketch(BlockKey(OWN.device, 1), "late", x))


def test_only_devices_with_different_data_have_a_spread():
    """Two devices hold the same blocks, and each has another own block."""
    learner = with_family("llama")
    twin = swapped(learner, OTHERS[0])
    for group, found in measure(learner).groups.items():
        np.testing.assert_allclose(found.sketch, measure(twin).groups[group].sketch, rtol=1e-3, atol=1e-5)
    fill(twin, OTHERS[1], seed=9, size=1.0)
    assert not np.allclose(
        measure(learner).groups["late"].sketch, measure(twin).groups["late"].sketch, rtol=0.1
    )
