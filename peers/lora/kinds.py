"""The kinds of adapters: each is linear in what is trained (docs/adapters.md).

A module gets s * sum_u B_u phi_u(x), over the owners u of blocks. The frozen features phi_u depend on the
slot of u alone. Deletion, join, mixing and allocation need only this linearity. They are therefore the same
for all kinds, and no kind has code for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peers.errors import InputError


@dataclass(frozen=True)
class AdapterKind:
    """One kind of adapter. This class itself is LoRA with a frozen A: phi_u(x) = A_u^T x.

    name: the value of `adapter.kind`. sigma: the pointwise function of the features, with sigma(0) = 0; None:
    the identity, and then dW = s * sum_u B_u A_u^T. gated: the trained matrix is one column b_u, and
    B_u = diag(b_u) P_u with a frozen P_u.
    """

    name: str
    sigma: Callable[[Tensor], Tensor] | None = None
    gated: bool = False

    @property
    def dense(self) -> bool:
        """Whether the sum over the owners is a matrix dW, which can be folded into a weight."""
        return self.sigma is None

    def columns(self, rank: int) -> int:
        """Columns of the trained matrix of a module whose bases have `rank` columns."""
        return 1 if self.gated else rank

    def check_matrix(self, use: str) -> None:
        """Raises InputError for a gated kind: `use` needs a trained matrix B with r columns."""
        if self.gated:
            raise InputError(f"adapter.kind: {self.name!r} has no trained B for {use}; allowed: another kind")

    def activate(self, z: Tensor) -> Tensor:
        """sigma(z). Several owners side by side are activated at once, since sigma is pointwise."""
        return z if self.sigma is None else self.sigma(z)

    def features(self, x: Tensor, a: Tensor) -> Tensor:
        """phi(x) = sigma(A^T x), [..., R], in the dtype of x. x: [..., d]. a: [d, R], of one or more owners.

        Of a gated kind these are the inputs of P_u.
        """
        return self.activate(x @ a.to(x.dtype))

    def factor(self, trained: Tensor, up: Tensor | None) -> Tensor:
        """B_u [k, r] from the trained matrix [k, columns] and the frozen P_u [k, r] of a gated kind."""
        return trained if up is None else trained * up

    def read_out(self, output: Callable[[Tensor], Tensor], a: Tensor, up: Tensor | None) -> Tensor:
        """s times the trained matrix, [k, columns], from the outputs of the adapter alone (method 3).

        output: s * sum_u B_u phi_u(x) for inputs [n, d], as [n, k]. The columns of A_u are its inputs. Only
        the owner of A_u answers, as sigma(0) = 0 and the bases are orthogonal: s B_u sigma(1). For LoRA this
        is dW A_u.
        """
        one = self.activate(torch.ones((), dtype=a.dtype, device=a.device))
        found = output(a.T).T / one
        return found if up is None else (found * up).sum(dim=1, keepdim=True)  # the rows of P_u have length 1


LORA = AdapterKind("lora")
KINDS = {
    kind.name: kind
    for kind in (
        LORA,
        AdapterKind("bottleneck-relu", functional.relu),
        AdapterKind("bottleneck-gelu", functional.gelu),
        AdapterKind("bottleneck-silu", functional.silu),
        AdapterKind("vera", gated=True),
    )
}
