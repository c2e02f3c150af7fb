"""Logit adjustment against a problem whose answer is known: label shares must not enter the classifier."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from peers.errors import InputError
from peers.tasks.encode import Encoded
from peers.tasks.encode_images import EncodedImages, ImageFormat
from peers.tasks.logit_adjustment import adjusted
from peers.tasks.loss import mean_loss, predictions

FORM = ImageFormat(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), classes=2)


class Classifier(nn.Module):
    """Logits that are linear in one pixel, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def get_output_embeddings(self) -> nn.Module:
        return self.linear

    def forward(self, pixel_values: torch.Tensor) -> object:
        return type("Output", (), {"logits": self.linear(pixel_values.flatten(1))})


def skewed(first: int, second: int) -> EncodedImages:
    """Pixels from N(-1, 1) for class 0 and from N(1, 1) for class 1, at equally likely quantiles."""
    labels = torch.tensor([0] * first + [1] * second)
    quantiles = torch.cat([(torch.arange(n) + 0.5) / n for n in (first, second)])
    pixels = torch.special.ndtri(quantiles) + 2 * labels - 1
    return EncodedImages(pixels.float().view(-1, 1, 1, 1), labels)


def boundary(data: EncodedImages, tau: float) -> float:
    """The pixel at which both classes are equally likely, as learnt with plain logits."""
    torch.manual_seed(0)
    model, batch = Classifier(), adjusted(data, tau, FORM)
    best = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        best.zero_grad()
        loss = mean_loss(*predictions(model, batch))
        loss.backward()
        return loss

    best.step(closure)
    slope, bias = (parameter.diff(dim=0).item() for parameter in model.parameters())
    return -bias / slope


def test_the_boundary_does_not_move_with_the_shares_of_the_classes() -> None:
    assert boundary(skewed(400, 400), 0.0) == pytest.approx(0.0, abs=0.02)
    # Of N(-1, 1) and N(1, 1) with shares 8 to 1, the boundary is at log(8) / 2.
    assert boundary(skewed(1600, 200), 0.0) == pytest.approx(math.log(8) / 2, abs=0.06)
    assert boundary(skewed(1600, 200), 1.0) == pytest.approx(0.0, abs=0.06)


def test_a_class_without_images_has_a_finite_shift_and_parts_keep_it() -> None:
    found = adjusted(skewed(3, 0), 2.0, FORM)
    shift = found.logit_shift
    assert shift is not None and torch.allclose(shift, 2 * torch.tensor([3.5, 0.5]).div(4.0).log())
    part = found.rows(torch.tensor([1])).to("cpu").logit_shift
    assert part is not None and part.equal(shift)


def test_without_it_the_loss_stays_the_same_to_the_last_bit() -> None:
    data = skewed(3, 2)
    assert adjusted(data, 0.0, FORM) is data and data.logit_shift is None
    logits, wanted = predictions(Classifier(), data)
    assert mean_loss(logits, wanted).equal(functional.cross_entropy(logits[:, 0], wanted[:, 0]))


def test_text_has_no_shares_of_classes() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(InputError, match=r"train.logit_adjustment: 1, and the data are text; allowed: 0"):
        adjusted(Encoded(tokens, tokens, tokens), 1.0, None)
