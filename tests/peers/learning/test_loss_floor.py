"""The floor of the loss that a frozen output head sets."""

from __future__ import annotations

import pytest
import torch

from peers.config import DeviceConfig
from peers.learning.loss_floor import LossFloor, head_input, token_floors
from peers.models.loader import load_model
from peers.tasks import Example, encode, make_task
from tests.support.learners import joined, small_loaded

FAMILIES = ["llama", "qwen2", "gpt2"]
DATA = encode([Example("red is", "green"), Example("blue is", "one")], small_loaded().tokenizer, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_what_the_final_norm_writes(family):
    model = small_loaded(family).model
    logits, x = head_input(model, DATA)
    with torch.no_grad():
        expected = model(input_ids=DATA.input_ids[:1]).logits[0, -1]
        assert torch.allclose(logits(x), expected, atol=1e-5)
        assert not torch.allclose(logits(x.roll(1)), expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_input_of_the_norm_has_a_loss_below_the_floor(family):
    logits, x = head_input(small_loaded(family).model, DATA)
    tokens = torch.arange(4)
    floors = token_floors(logits, x, tokens)
    tried = torch.randn(500, len(x), generator=torch.Generator().manual_seed(0)) * x.norm() / len(x) ** 0.5
    with torch.no_grad():
        best = -logits(tried).log_softmax(dim=-1)[:, tokens].max(dim=0).values
    assert (floors < best).all()


def test_the_floor_of_a_batch_is_the_mean_over_its_response_tokens():
    floor = LossFloor(small_loaded().model, DATA)
    first, second, both = (floor.mean(DATA.rows(torch.tensor(rows))) for rows in ([0], [1], [0, 1]))
    answers = [int((DATA.labels[i, 1:] != -100).sum()) for i in (0, 1)]
    assert both == pytest.approx((answers[0] * first + answers[1] * second) / sum(answers))
    assert both > 0


def test_a_batch_without_an_answer_has_no_floor():
    floor = LossFloor(small_loaded().model, DATA)
    empty = DATA.rows(torch.tensor([0]))
    empty.labels.fill_(-100)
    assert floor.mean(empty) == 0


def test_adapters_do_not_move_the_floor():
    learner = joined()
    before = LossFloor(learner.model.base_model.model, DATA).mean(DATA)
    learner.train(0, 3, rehearse=False)
    assert LossFloor(learner.model.base_model.model, DATA).mean(DATA) == pytest.approx(before, abs=0.01)


def test_the_floor_of_tiny_is_about_one_and_a_half_nats():
    """A device alone that trains on its 12 facts reaches a loss of 1.4857 after 150 steps of 2.5e-3."""
    config = DeviceConfig.model_validate({"data": {"persons": 3}})
    loaded = load_model(config.model)
    facts = loaded.encode(make_task(config).train_examples("d0"), 128)
    assert LossFloor(loaded.model, facts).mean(facts) == pytest.approx(1.4855, abs=2e-3)
