"""The loss is computed from shifted logits, whatever the class of the model does with labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from peers.learning.diagnosis import Options
from peers.learning.learner import Learner
from peers.models.loader import LoadedModel
from peers.tasks import evaluate, loss, mean_loss, predictions
from peers.tasks.encode import Encoded
from tests.support.learners import OWN, small_config, small_data, small_loaded


def expected(model: Any, batch: Encoded) -> torch.Tensor:
    """The mean of -log p(next token) over the tokens of the responses, token by token."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    nats = [
        -functional.log_softmax(logits[i, t - 1], dim=-1)[label]
        for i, row in enumerate(batch.labels.tolist())
        for t, label in enumerate(row)
        if label >= 0
    ]
    return torch.stack(nats).mean()


@pytest.fixture(params=["llama", "qwen2", "gpt2", "bart"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return small_loaded(request.param)


def test_each_logit_is_compared_with_the_next_token(loaded: LoadedModel) -> None:
    data = small_data(loaded)
    wanted = float(expected(loaded.model, data))
    assert float(mean_loss(*predictions(loaded.model, data))) == pytest.approx(wanted, rel=1e-5)
    assert evaluate(loaded.model, data).loss == pytest.approx(wanted, rel=1e-5)


def test_many_logits_are_computed_from_the_first_one_that_predicts_a_response(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data(loaded)
    learner = Learner(loaded, small_config(data={"batch": 16}), data, "d0")
    learner.set_own(OWN, 0)
    model, rows = learner.model, data.rows(torch.arange(1))  # PEFT's model
    with torch.no_grad():
        nats = float(expected(model, data))
        logits, wanted = predictions(model, rows)
        monkeypatch.setattr(loss, "MANY", 0)
        some, classes = predictions(model, rows)
    first = int((wanted[0] >= 0).nonzero()[0])
    assert first > 0 and torch.equal(classes, wanted[:, first:])
    assert torch.allclose(some, logits[:, first:], atol=1e-5)
    assert float(mean_loss(some, classes)) == pytest.approx(float(mean_loss(logits, wanted)), rel=1e-5)
    assert learner.diagnose(0, 16, Options()).loss == pytest.approx(nats, rel=1e-5)


def test_local_steps_diagnosis_and_score_agree_for_every_class(loaded: LoadedModel) -> None:
    data = small_data(loaded)
    wanted = float(expected(loaded.model, data))
    learner = Learner(loaded, small_config(data={"batch": 16}), data, "d0")
    learner.set_own(OWN, 0)  # B = 0: the model is still the base model
    assert learner.diagnose(0, 16, Options()).loss == pytest.approx(wanted, rel=1e-5)
    assert learner.train(0, 1, rehearse=False).loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_loss_equals_that_of_a_class_that_shifts_itself(family: Any) -> None:
    loaded = small_loaded(family)
    data = small_data(loaded)
    own = loaded.model(input_ids=data.input_ids, attention_mask=data.attention_mask, labels=data.labels).loss
    assert torch.equal(mean_loss(*predictions(loaded.model, data)), own)


def test_a_class_that_leaves_the_shift_to_the_caller_has_another_loss() -> None:
    loaded = small_loaded("bart")
    data = small_data(loaded)
    own = loaded.model(input_ids=data.input_ids, attention_mask=data.attention_mask, labels=data.labels).loss
    assert float(own) != pytest.approx(float(expected(loaded.model, data)), rel=1e-3)
