"""Unlearning by influence functions, a baseline: one Newton step that removes the leaver's data.

Source: Koh and Liang (2017), eq. 1 and 2, for a group of examples. With n_u of N examples removed, the
minimum moves by (n_u / N) H^-1 g_u, where g_u is the mean gradient of the leaver's loss. H is block-diagonal
Gauss-Newton: one block a module, as the Kronecker product of two factors (Martens and Grosse, 2015). The
leaver must compute g_u on its data before it goes, and send it: as many bytes as the whole adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1e-2  # of each factor, as a share of its mean eigenvalue


def kronecker_factors(z: Tensor, d: Tensor, counted: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """E[d d^T], [k, k], and s^2 E[z z^T], [r, r], of one module. Float64.

    z: features phi(x), [n, T, r]. d: gradients of the mean loss w.r.t. the outputs, [n, T, k]. counted: bool
    [n, T], false for padding. The first mean is over examples, the second over positions.
    """
    rows, inner = len(z) * d[counted].double(), scale * z[counted].double()
    return rows.T @ rows / len(z), inner.T @ inner / max(1, len(inner))


def influence_move(gradient: Tensor, left: Tensor, right: Tensor, share: float) -> Tensor:
    """The move of B of one module, [k, r]: share * (left + a I)^-1 gradient (right + b I)^-1.

    gradient: of the leaver's mean loss w.r.t. B, [k, r]. left, right: `kronecker_factors` on the survivors'
    data. share: n_u / N. Damping a and b: DAMPING times the mean eigenvalue.
    """
    solved = torch.linalg.solve(_damped(left), gradient.double())
    moved: Tensor = torch.linalg.solve(_damped(right), solved.T).T
    return (share * moved).float()


def _damped(factor: Tensor) -> Tensor:
    found = factor.double()
    size = len(found)
    ridge = DAMPING * found.trace() / size + torch.finfo(found.dtype).tiny
    return found + ridge * torch.eye(size, dtype=found.dtype, device=found.device)


def clipped(move: Tensor, largest: float) -> Tensor:
    """The move, shortened to the Frobenius norm `largest`: far from the minimum, a Newton step overshoots."""
    norm = float(move.norm())
    return move if norm <= largest else move * (largest / norm)
