"""The adapter as a set of blocks: s * sum_u B_u phi_u(x); LoRA: dW = s * sum_u B_u A_u^T (methods 1, 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.lora.bases import Bases
from peers.lora.kinds import LORA, AdapterKind

SINGULAR = 1e-6  # a smaller least eigenvalue of A^T A means that two blocks share a basis


@dataclass
class Block:
    """One block. data: the trained matrix by group, float32 [rows_g, r_g]; for LoRA it is B. bases: A by
    module, float32 [d, r], constant. ups: P by module, [k, r], constant; empty for a kind that has none.
    """

    slot: int
    data: dict[str, Tensor]
    bases: dict[str, Tensor]
    kind: AdapterKind = LORA
    ups: dict[str, Tensor] = field(default_factory=dict)

    def features(self, module: str, x: Tensor) -> Tensor:
        """phi_u(x) of one module, [..., r], in the dtype of x; x: [..., d]."""
        return self.kind.features(x, self.bases[module])

    def factor(self, module: str, trained: Tensor) -> Tensor:
        """B of one module, [k, r], from the trained matrix of the module."""
        return self.kind.factor(trained, self.ups.get(module))


class BlockSet:
    """The blocks that a device holds, by key. All tensors are on `device`."""

    def __init__(self, bases: Bases, device: torch.device | str = "cpu") -> None:
        self.layout, self.scale = bases.recipe.layout, bases.recipe.scale
        self._bases, self._device = bases, device
        self._blocks: dict[BlockKey, Block] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._blocks

    def __getitem__(self, key: BlockKey) -> Block:
        return self._blocks[key]

    def __len__(self) -> int:
        return len(self._blocks)

    def keys(self) -> list[BlockKey]:
        """The keys, sorted: the order is the same on all devices."""
        return sorted(self._blocks)

    def add(self, key: BlockKey, slot: int) -> Block:
        """Add a block at B = 0. Raises ValueError if it is held already, InputError for an unknown slot."""
        if key in self._blocks:
            raise ValueError(f"block {key} is held already")
        frozen = self._bases.block(slot, self._device), self.layout.kind, self._bases.ups(slot, self._device)
        block = Block(slot, self.layout.zeros(self._device), *frozen)
        self._blocks[key] = block
        return block

    def delete(self, key: BlockKey) -> None:
        """Drop the block: dW <- dW - s B_u A_u^T. Its memory is overwritten. Raises KeyError if not held."""
        overwrite(self._blocks.pop(key).data.values())

    def set(self, key: BlockKey, group: str, values: Tensor) -> None:
        """B_u of a group <- values, [rows_g, r_g]. Raises ValueError for another shape."""
        target = self._blocks[key].data[group]
        if values.shape != target.shape:
            raise ValueError(f"{key}/{group}: {tuple(values.shape)} where {tuple(target.shape)} is held")
        with torch.no_grad():
            target.copy_(values)

    def replaced(self, values: Mapping[BlockKey, Mapping[str, Tensor]]) -> BlockSet:
        """The same blocks with other B of some, by block and group. Tensors are shared, not copied."""
        found = copy(self)
        found._blocks = {
            key: replace(block, data={**block.data, **values.get(key, {})})
            for key, block in self._blocks.items()
        }
        return found

    def part(self, key: BlockKey, module: str) -> Tensor:
        """A view of the trained matrix of one module, [k, r_g]; for LoRA it is B_u."""
        group = self.layout.by_name[module].group
        return self._blocks[key].data[group].detach()[self.layout.slices(group)[module]]

    def factor(self, key: BlockKey, module: str) -> Tensor:
        """B_u of one module, [k, r]; for LoRA it is `part`."""
        return self._blocks[key].factor(module, self.part(key, module))

    def output(self, module: str, x: Tensor, keys: Collection[BlockKey] | None = None) -> Tensor:
        """s * sum B phi(x) of the given blocks (None: of all), [n, k]. x: [n, d]."""
        total = torch.zeros(len(x), self.layout.by_name[module].out_features, device=self._device)
        for key in self.keys() if keys is None else sorted(keys):
            features = self._blocks[key].features(module, x)
            total.addmm_(features, self.factor(key, module).T, alpha=self.scale)
        return total

    def read_out(self, key: BlockKey, module: str) -> Tensor:
        """s times the trained matrix of a block, [k, r_g], from the outputs of all blocks (method 3)."""
        block = self._blocks[key]
        return self.layout.kind.read_out(
            lambda x: self.output(module, x), block.bases[module], block.ups.get(module)
        )

    def delta(self, module: str, keys: Collection[BlockKey] | None = None) -> Tensor:
        """dW = s * sum B A^T of the given blocks (None: of all), [k, d] float32. Only of a dense kind."""
        shape = self.layout.by_name[module]
        total = torch.zeros(shape.out_features, shape.in_features, device=self._device)
        for key in self.keys() if keys is None else sorted(keys):
            total.addmm_(self.factor(key, module), self._blocks[key].bases[module].T, alpha=self.scale)
        return total

    def norms(self) -> dict[str, dict[str, float]]:
        """||C_u||_F = s ||B_u||_F by block and group."""
        return {
            str(key): {g: self.scale * float(b.norm()) for g, b in self._blocks[key].data.items()}
            for key in self.keys()
        }

    def tensors(self, keys: Iterable[BlockKey]) -> dict[str, Tensor]:
        """B by "<device>@<incarnation>/<group>", copied to the CPU."""
        return {
            f"{key}/{g}": b.detach().to("cpu", copy=True)
            for key in keys
            for g, b in self._blocks[key].data.items()
        }


def overwrite(tensors: Iterable[Tensor]) -> None:
    """Set tensors to zero in place, before they are dropped: freed memory keeps its content."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()


def read_out(delta_w: Tensor, basis: Tensor) -> Tensor:
    """The contribution index C_u = dW A_u, [k, r]; equals s B_u for orthogonal bases (method 3)."""
    return delta_w @ basis


def gram_coordinates(delta_w: Tensor, bases: Sequence[Tensor]) -> list[Tensor]:
    """All C_u of a merged dW: C = dW A (A^T A)^-1 with A = [A_1 ... A_N]; float64, [k, r_u] each (method 3).

    Exact for non-orthogonal bases too. Raises InputError if N r > d or two blocks share a basis: dW then does
    not determine the C_u.
    """
    ranks = [basis.shape[1] for basis in bases]
    stacked = torch.cat([basis.double() for basis in bases], dim=1)
    d, columns = stacked.shape
    if columns > d:
        raise InputError(
            f"{len(bases)} blocks have {columns} columns where the module has d = {d}: "
            "a merged adapter can be taken apart only for N*r <= d"
        )
    gram = stacked.T @ stacked
    if float(torch.linalg.eigvalsh(gram)[0]) < SINGULAR:
        raise InputError("two blocks share a basis: a merged adapter cannot tell them apart")
    coordinates = torch.linalg.solve(gram, (delta_w.double() @ stacked).T).T
    return list(torch.split(coordinates, ranks, dim=1))


def gram_delete(delta_w: Tensor, bases: Sequence[Tensor], index: int) -> Tensor:
    """Gram-corrected deletion of block `index` from a merged dW, [k, d]: dW - C_u A_u^T (method 3).

    Raises InputError as gram_coordinates does.
    """
    removed = gram_coordinates(delta_w, bases)[index] @ bases[index].double().T
    return (delta_w.double() - removed).to(delta_w.dtype)
