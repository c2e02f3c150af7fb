"""Local steps in the eigenbasis of the own block's Fisher information.

Per module, a Kronecker product of two small factors approximates F (K-FAC: Martens and Grosse, 2015, eq. 8):

    F ~ E[d d^T] (x) E[z z^T],    z = phi_i(x),    d = dl/dy, l the loss summed over response tokens

The factors are measured once on the own data. F is almost diagonal in their eigenbases. AdamW assumes a
diagonal F, and so divides each direction by its own curvature (E-KFAC: George et al., 2018; SOAP: Vyas et
al., 2024). Otherwise the directions that all prompts share would move most. With these steps a device
disturbs less of the facts that other devices have learnt.

Interference-aware steps (ours) also know the second moments of other devices' inputs (foreign_inputs.py). The
right basis V then holds the eigenvectors of the own moments relative to the others': V^T S_others V = I.
AdamW moves all coordinates by one length. So the block moves less in directions that other devices use more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peers.learning.backward_pass import passes
from peers.lora.blocks import Block
from peers.lora.layout import ModelLayout, ModuleShape
from peers.tasks.batch import Batch
from peers.tasks.encode import IGNORED

RIDGE = 0.1  # of the moments of others, which have a mean eigenvalue of 1
WIDEST = 1024  # largest k with an eigenbasis of d, which takes k^3 operations and k^2 numbers


class FisherSteps:
    """Steps of the block `own`. The constructor measures the factors on `batches`.

    model: the PEFT model with all blocks in it; its parameters and their gradients stay unchanged. Raises
    RuntimeError if a gradient is not finite.
    """

    def __init__(
        self,
        model: Any,
        layout: ModelLayout,
        own: Block,
        batches: Iterable[Batch],
        weight_decay: float,
    ) -> None:
        self._layout, self._own, self._decay = layout, own, weight_decay
        left, right = _factors(model, layout, own, batches)
        if not all(factor.isfinite().all() for factor in (*left.values(), *right.values())):
            raise RuntimeError(
                "the Fisher information is not finite: training diverged; try a lower train.lr"
            )
        self._factors = right
        self._left = {name: torch.linalg.eigh(factor)[1].float() for name, factor in left.items()}  # [k, k]
        self.know_others([])

    def know_others(self, others: Sequence[Mapping[str, Tensor]]) -> None:
        """The right basis for these second moments of other devices; none: the own eigenbasis. AdamW's
        moments begin anew."""
        self._right = {name: _right_basis(f, [m[name] for m in others]) for name, f in self._factors.items()}
        own, layout = self._own, self._layout
        # the move of one step, in the bases
        self._moves = {m.name: torch.zeros_like(own.data[m.group][_rows(layout, m)]) for m in layout.modules}
        self._optimizer = torch.optim.AdamW(list(self._moves.values()), weight_decay=0.0)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """One step of the block against its gradients, [rows_g, r_g] by group. Other groups do not move."""
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = lr
        for module in self._layout.modules:
            gradient, move = gradients.get(module.group), self._moves[module.name]
            move.zero_()
            turned = None if gradient is None else gradient[_rows(self._layout, module)]
            move.grad = None if turned is None else self._turn(module.name, turned)
        self._optimizer.step()
        for group in gradients:
            self._own.data[group].mul_(1 - lr * self._decay)
        for module in self._layout.modules:
            if module.group in gradients:
                move = self._turn_back(module.name, self._moves[module.name])
                self._own.data[module.group][_rows(self._layout, module)] += move

    def _turn(self, name: str, matrix: Tensor) -> Tensor:
        turned: Tensor = matrix @ self._right[name]
        return self._left[name].T @ turned if name in self._left else turned

    def _turn_back(self, name: str, matrix: Tensor) -> Tensor:
        turned: Tensor = matrix @ self._right[name].T
        return self._left[name] @ turned if name in self._left else turned


def _right_basis(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """V, [r, r] float32, with the squared length r in all: eigenvectors of `own` relative to the others."""
    if not others:
        eigenvectors: Tensor = torch.linalg.eigh(own)[1]
        return eigenvectors.float()
    theirs = torch.stack(list(others)).sum(dim=0)
    eye = torch.eye(len(own), dtype=own.dtype, device=own.device)
    values, vectors = torch.linalg.eigh(theirs * (len(own) / theirs.trace()) + RIDGE * eye)
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    basis: Tensor = whitening @ torch.linalg.eigh(whitening @ own @ whitening)[1]
    return (basis * (len(own) / basis.square().sum()).sqrt()).float()


def _factors(
    model: Any, layout: ModelLayout, own: Block, batches: Iterable[Batch]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """sum d d^T [k, k] and sum z z^T [r, r] by module, over all tokens but padding; float64."""
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    for batch in batches:
        answered = int((batch.wanted() != IGNORED).sum())  # the loss of a batch is their mean
        for name, (x, d) in passes(model, layout, batch).items():
            tokens = batch.counted(x.shape[1])
            z = own.features(name, x[tokens].float()).double()
            right[name] = right.get(name, 0.0) + z.T @ z
            if d.shape[-1] <= WIDEST:
                rows = answered * d[tokens].double()
                left[name] = left.get(name, 0.0) + rows.T @ rows
    return left, right


def _rows(layout: ModelLayout, module: ModuleShape) -> slice:
    return layout.slices(module.group)[module.name]
