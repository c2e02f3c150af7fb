"""The floor of the loss: what the frozen output head of a model cannot go below (method 6).

A frozen final norm bounds the logits, so the loss of a response token cannot reach 0. The floor of a token is
the loss at the best input of the final norm. Adapters change this input and nothing behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peers.tasks.encode import IGNORED

if TYPE_CHECKING:
    from peers.tasks.batch import Batch

MOST_TOKENS = 256  # tokens whose floor is searched, the most frequent ones; the others get their mean
MOST_STEPS, CHECK_EVERY = 200, 10
STEP = 0.1  # of the search, relative to the mean size of the numbers in a vector
LITTLE = 1e-4  # nats: the search ends when a tenth of its steps gains less, or when the floor is smaller


class LossFloor:
    """Floors of the response tokens of `data`, searched at the first use. `model`: not adapted yet, or with
    adapters in front of the head only. The floor of a model without a language head, such as a classifier of
    images, is 0."""

    def __init__(self, model: Any, data: Batch) -> None:
        self._model, self._data = model, data
        self._floors: Tensor | None = None  # [V]; tokens without a search have the mean

    def mean(self, batch: Batch) -> float:
        """The floor of the mean loss of a batch, in nats per response token."""
        if self._floors is None:
            self._floors = self._searched()
        wanted = batch.wanted()
        found = self._floors[wanted[wanted != IGNORED].to(self._floors.device)]
        return float(found.mean()) if len(found) else 0.0

    def _searched(self) -> Tensor:
        wanted = self._data.wanted()
        tokens, counts = torch.unique(wanted[wanted != IGNORED], return_counts=True)
        most = counts.argsort(descending=True, stable=True)[:MOST_TOKENS]
        head = self._model.get_output_embeddings()
        if head is None or not len(most):
            return torch.zeros(int(wanted.max()) + 1 if wanted.numel() else 1)
        tokens = tokens[most].to(head.weight.device)
        floors = token_floors(*head_input(self._model, self._data), tokens)
        weights = counts[most].to(floors)
        table = torch.full((len(head.weight),), float(floors @ weights / weights.sum()))
        table[tokens.cpu()] = floors.cpu()
        return table


@torch.no_grad()
def head_input(model: Any, data: Batch) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function from the input of the final norm to the logits, and one such input, [d].

    The norm is the last module whose output the head reads. Without one, the function is the head alone.
    """
    head = model.get_output_embeddings()
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # module, input, output, in the order of the calls

    def record(module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(y, Tensor):
            calls.append((module, args[0], y))

    leaves = [m for m in model.modules() if m is head or not any(True for _ in m.children())]
    hooks = [m.register_forward_hook(record) for m in leaves]
    try:
        model(**data.rows(torch.tensor([0])).to(head.weight.device).inputs())
    finally:
        for hook in hooks:
            hook.remove()
    read = next(x for module, x, _ in calls if module is head)
    norms = [(m, x) for m, x, y in calls if m is not head and x.shape == y.shape and _shares(y, read)]
    if not norms:
        return head, read.flatten(0, -2)[-1]
    norm, x = norms[-1]
    return lambda z: head(norm(z)), x.flatten(0, -2)[-1]


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def token_floors(logits: Callable[[Tensor], Tensor], like: Tensor, tokens: Tensor) -> Tensor:
    """The smallest loss of each token over inputs of the length of `like`, [d]; nats, [len(tokens)].

    Without a norm the inputs keep this length; a norm ignores it.
    """
    length = torch.linalg.vector_norm(like.float())
    with torch.enable_grad():
        x = like.float().expand(len(tokens), -1).clone().requires_grad_(True)
        lr = STEP * float(length) / like.numel() ** 0.5
        optimizer = torch.optim.Adam([x], lr=max(lr, 1e-8))
        best = torch.full((len(tokens),), float("inf"), device=x.device)
        earlier = float("inf")
        for step in range(MOST_STEPS):
            kept = x * (length / torch.linalg.vector_norm(x, dim=1, keepdim=True))
            loss = functional.cross_entropy(logits(kept.to(like.dtype)).float(), tokens, reduction="none")
            best = torch.minimum(best, loss.detach())
            if step % CHECK_EVERY == 0:
                now = float(best.mean())
                if now < LITTLE or earlier - now < LITTLE:
                    break
                earlier = now
            (gradient,) = torch.autograd.grad(loss.sum(), [x])
            x.grad = gradient
            optimizer.step()
    return best
