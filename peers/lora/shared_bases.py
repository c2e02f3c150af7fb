"""The frozen matrices of the kind `vera`: all modules share them, as in VeRA (Kopiczko et al., 2024).

VeRA adapts a module of d inputs and k outputs by diag(b) B diag(l) A. A has the first d columns of one frozen
matrix, and B the first k rows of another one. VeRA trains b and l, so dW is bilinear. Here l is frozen: in
the columns of the owner's slot it has one value, elsewhere 0. So dW is linear in b:

    dW_u = diag(b_u) P_u A_u^T

The bases of slots have to be orthogonal in modules of every width. The rows of the shared matrix are
therefore a stack of orthonormal pieces, one piece from each width to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coordinator_free.seeded_random import generator
from peers.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peers.lora.layout import ModuleShape


class SharedBases:
    """The matrices of a recipe with one rank. name: the algorithm, which names the random streams.

    Raises InputError if a module is no linear one, or if a piece is too narrow for all slots.
    """

    def __init__(self, name: str, seed: int, modules: tuple[ModuleShape, ...], slots: int) -> None:
        self._name, self._seed = name, seed
        self._rank = max(module.rank for module in modules)
        self._pieces = _pieces(modules, slots * self._rank)
        self._tallest = max(module.out_features for module in modules)
        self._columns = slots * self._rank
        self._stack: NDArray[np.float64] | None = None

    def basis(self, width: int, slot: int) -> NDArray[np.float64]:
        """A_u of a module with `width` inputs, [width, r], with orthonormal columns."""
        columns = slice(slot * self._rank, (slot + 1) * self._rank)
        scaled: NDArray[np.float64] = self.stack()[:width, columns] * self.share(width)
        return scaled

    def stack(self) -> NDArray[np.float64]:
        """The matrix that all modules share, transposed: [largest width, slots * r]."""
        if self._stack is None:
            self._stack = np.concatenate([self._piece(i, size) for i, size in enumerate(self._pieces)])
        return self._stack

    def share(self, width: int) -> float:
        """The frozen value l of a module with `width` inputs: its rows of the stack are 1 / l^2 pieces."""
        pieces = int(np.searchsorted(np.cumsum(self._pieces), width)) + 1
        return float(1 / np.sqrt(pieces))

    def up(self, height: int, slot: int) -> NDArray[np.float64]:
        """P_u of a module with `height` outputs, [height, r], with rows of length 1."""
        drawn = generator(self._name, self._seed, "up", slot).standard_normal((self._tallest, self._rank))
        rows: NDArray[np.float64] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return rows[:height]

    def _piece(self, number: int, size: int) -> NDArray[np.float64]:
        draw = generator(self._name, self._seed, "shared", number)
        q, r = np.linalg.qr(draw.standard_normal((size, self._columns)))
        signed: NDArray[np.float64] = q * np.where(np.diag(r) < 0, -1.0, 1.0)
        return signed


def _pieces(modules: tuple[ModuleShape, ...], columns: int) -> list[int]:
    """The rows of each piece: the least width, and the steps from each width to the next."""
    convolution = next((module.name for module in modules if module.kernel), None)
    if convolution is not None:
        raise InputError(
            f"adapter.kind: 'vera' with the convolution {convolution!r}; allowed: Linear and Conv1D modules, "
            "as in PEFT, or another kind"
        )
    widths = sorted({module.in_features for module in modules})
    steps = [after - before for before, after in zip([0, *widths], widths, strict=False)]
    narrow = min(range(len(steps)), key=lambda i: steps[i])
    if steps[narrow] < columns:
        raise InputError(
            f"adapter.kind: 'vera' shares one basis among modules of {', '.join(map(str, widths))} inputs; "
            f"{widths[narrow]} is {steps[narrow]} more than the width before it, and adapter.max_devices * "
            f"adapter.rank = {columns} or more are needed; allowed: fewer slots, a lower rank or another kind"
        )
    return steps
