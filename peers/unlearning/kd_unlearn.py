"""Unlearning by distillation, a baseline: the leaver's own block is trained towards the base model.

Before it goes, the leaver takes steps that make its outputs on its own data those of the base model (a
teacher that has not seen the data: Chundawat et al., 2023). Its block stays with the others. Nothing is
stored. The leaver needs its data, time for the steps, and one more exchange of its block.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from peers.tasks.encode import IGNORED


def distillation_loss(logits: Tensor, base_logits: Tensor, wanted: Tensor) -> Tensor:
    """KL(base || model), mean nats over the positions that have a class to predict.

    logits, base_logits: float32 [n, L, V]. wanted: [n, L], as `peers.tasks.predictions` returns it.
    """
    counts = wanted != IGNORED
    model, base = (functional.log_softmax(some[counts], dim=-1) for some in (logits, base_logits))
    return functional.kl_div(model, base, reduction="batchmean", log_target=True)
