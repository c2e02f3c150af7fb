"""Scores of tokens: texts share the work on a common beginning, and are computed in groups of one length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peers.tasks import (
    Encoded,
    Example,
    encode,
    predictions,
    score_examples,
    score_tokens,
    shared_prefix,
    with_prefix,
)
from peers.tasks import score as scoring
from peers.tasks.encode import IGNORED
from tests.support.learners import small_loaded
from tests.support.tiny_models import Family

START = "alpha beta gamma delta one two three four in the"  # ten tokens
LONG = [
    Example(f"{START} home of", "red"),
    Example(f"{START} lives", "green blue is"),
    Example(f"{START} lives in the home of a", "one two"),
    Example(f"{START} of", "blue", ends=True),
]
FAMILIES: list[Family] = ["llama", "qwen2", "gpt2", "bart", "gemma3-vision"]


def one_by_one(model: Any, texts: Encoded) -> list[Tensor]:
    """The log-probabilities of the tokens of each response, from the logits of one text at a time."""
    found = []
    for i in range(len(texts)):
        logits, wanted = predictions(model, texts.rows(torch.tensor([i])))
        places = wanted[0] != IGNORED
        found.append(logits[0, places].log_softmax(dim=-1).gather(1, wanted[0, places][:, None]).squeeze(1))
    return found


def test_every_model_scores_texts_with_a_common_beginning_as_it_scores_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for family in FAMILIES:
        loaded = small_loaded(family)
        texts = encode(LONG, loaded.tokenizer, 32)
        with torch.no_grad():
            expected = one_by_one(loaded.model, texts)
        assert with_prefix(loaded.model, texts).length == 10, family
        monkeypatch.setattr(scoring, "LOGITS_CEILING", 1)  # a group for each text, the shortest first
        single = score_tokens(loaded.model, texts)
        monkeypatch.undo()
        table = score_tokens(loaded.model, texts)
        counted = texts.wanted() != IGNORED
        for found in (single, table):
            assert torch.allclose(found.logp[counted], torch.cat(expected), atol=1e-4), family
            assert not found.logp[~counted].any() and bool(found.hit[~counted].all())
        known, loss, tokens = score_examples(loaded.model, texts)
        assert known.tolist() == table.hit.all(dim=1).tolist() and tokens.tolist() == [1, 3, 2, 2]
        assert loss.tolist() == pytest.approx([-float(logp.sum()) for logp in expected], rel=1e-4)


def test_the_beginning_is_computed_once_and_the_head_at_responses_only() -> None:
    loaded = small_loaded()
    texts = encode(LONG, loaded.tokenizer, 32)
    shared_prefix._continues[loaded.model] = True  # not tried here: the trial would be counted too
    body, head = loaded.model.model.layers[0], loaded.model.lm_head
    read, predicted = list[tuple[int, ...]](), list[tuple[int, ...]]()
    hooks = [
        body.register_forward_hook(lambda m, args, out: read.append(tuple(args[0].shape[:2]))),
        head.register_forward_hook(lambda m, args, out: predicted.append(tuple(args[0].shape[:2]))),
    ]
    score_tokens(loaded.model, texts)
    for hook in hooks:
        hook.remove()
    longest = int(texts.lengths().max())
    first = int((texts.labels != IGNORED).int().argmax(dim=1).min())
    assert read == [(1, 10), (4, longest - 10)]
    assert predicted[1:] == [(4, longest - first + 1)]


def test_texts_without_a_long_common_beginning_have_no_prefix() -> None:
    loaded = small_loaded()
    short = encode([Example("alpha", "red"), Example("alpha beta", "red")], loaded.tokenizer, 32)
    assert with_prefix(loaded.model, short).length == 0
    assert with_prefix(loaded.model, encode(LONG[:1], loaded.tokenizer, 32)).length == 0  # one saves nothing
    # A token of a response, and the token before it, are never part of it.
    same = encode([Example(START, "red"), Example(START, "red blue")], loaded.tokenizer, 32)
    assert with_prefix(loaded.model, same).length == 9


def test_a_model_that_forgets_its_beginning_gets_whole_texts() -> None:
    loaded = small_loaded()
    texts = encode(LONG, loaded.tokenizer, 32)

    class Forgetful(nn.Module):
        """Accepts kept keys and values, and does not use them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self._is_stateful = loaded.model, False

        def get_output_embeddings(self) -> nn.Module:
            return loaded.model.get_output_embeddings()

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor,
            past_key_values: Any = None,
            use_cache: bool = False,
        ) -> Any:
            mask = attention_mask[:, -input_ids.shape[1] :]
            return self.inner(input_ids=input_ids, attention_mask=mask, use_cache=use_cache)

    model: Any = Forgetful()
    assert with_prefix(model, texts).length == 0
    assert torch.allclose(score_tokens(model, texts).logp, score_tokens(loaded.model, texts).logp, atol=1e-4)


def test_a_recurrent_model_gets_whole_texts() -> None:
    loaded = small_loaded()
    texts = encode(LONG, loaded.tokenizer, 32)
    loaded.model._is_stateful = True
    assert with_prefix(loaded.model, texts).length == 0


def test_no_examples_have_no_scores() -> None:
    """A run on jsonl has no other wording and no control examples."""
    loaded = small_loaded()
    found = score_tokens(loaded.model, loaded.encode([], 32))
    assert len(found.logp) == len(found.hit) == 0
