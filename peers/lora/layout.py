"""Which modules are adapted, and how a block's numbers are laid out over them.

A block is one float32 matrix for each group (early, mid, late by depth): the modules of the group stacked in
the layout's order, [rows_g, r_g] with rows_g = the sum of their out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coordinator_free.correction.residuals import Size
from peers.errors import InputError

GROUPS = ("early", "mid", "late")
Rank = int | Mapping[str, int]


@dataclass(frozen=True)
class ModuleShape:
    """One adapted module: W is [out_features k, in_features d], stored transposed in a `conv1d` (GPT-2)."""

    name: str
    in_features: int
    out_features: int
    group: str
    rank: int
    conv1d: bool = False

    def to_dict(self) -> dict[str, str | int | bool]:
        return asdict(self)


class ModelLayout:
    """The adapted modules in a fixed order, and where each lies in its group's matrix."""

    def __init__(self, modules: Sequence[ModuleShape]) -> None:
        self.modules = tuple(modules)
        self.groups = tuple(g for g in GROUPS if any(m.group == g for m in self.modules))
        self._rows = {g: sum(m.out_features for m in self.modules if m.group == g) for g in self.groups}
        self._ranks = {m.group: m.rank for m in self.modules}  # the same within a group
        self._slices = {g: _stack([m for m in self.modules if m.group == g]) for g in self.groups}

    @classmethod
    def from_model(cls, model: nn.Module, target_modules: Sequence[str], rank: Rank) -> ModelLayout:
        """The modules whose name is a target or ends in one after a dot, in the model's own order.

        Raises InputError: no such module, one that is neither Linear nor Conv1D, a rank that names an unknown
        group or lacks one that the model has.
        """
        found = [(n, m) for n, m in model.named_modules() if _is_target(n, target_modules)]
        if not found:
            raise InputError(f"model.target_modules: no module is named {', '.join(target_modules)}")
        groups = _groups([name for name, _ in found])
        ranks = {group: _rank(rank, group) for group in dict.fromkeys(groups)}
        return cls([_shape(n, m, g, ranks[g]) for (n, m), g in zip(found, groups, strict=True)])

    @cached_property
    def by_name(self) -> dict[str, ModuleShape]:
        return {module.name: module for module in self.modules}

    def rows(self, group: str) -> int:
        """rows_g: the sum of out_features over the group's modules."""
        return self._rows[group]

    def rank(self, group: str) -> int:
        """r_g."""
        return self._ranks[group]

    def size(self, group: str) -> Size:
        """r_g, and the parameters that one device trains of the group."""
        return Size(self.rank(group), self.rows(group) * self.rank(group))

    def slices(self, group: str) -> dict[str, slice]:
        """Which rows of the group's matrix belong to which module."""
        return self._slices[group]

    def zeros(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """A block at B = 0: group -> float32 [rows_g, r_g]."""
        return {g: torch.zeros(self.rows(g), self.rank(g), device=device) for g in self.groups}


def _is_target(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _stack(modules: Sequence[ModuleShape]) -> dict[str, slice]:
    slices, start = {}, 0
    for module in modules:
        slices[module.name] = slice(start, start + module.out_features)
        start += module.out_features
    return slices


def _shape(name: str, module: nn.Module, group: str, rank: int) -> ModuleShape:
    if isinstance(module, nn.Linear):
        return ModuleShape(name, module.in_features, module.out_features, group, rank)
    if isinstance(module, Conv1D):
        d, k = module.weight.shape
        return ModuleShape(name, int(d), int(k), group, rank, conv1d=True)
    kind = type(module).__name__
    raise InputError(f"model.target_modules: {name!r} is a {kind}; allowed: Linear and Conv1D modules")


def _groups(names: Sequence[str]) -> list[str]:
    """Thirds of the depth. Layer p of L lies at (p + 1/2) / L, so that few layers spread out evenly.

    A module outside the numbered layers goes with those before it; without any numbers, order is depth.
    """
    numbers = [_layer_index(name) for name in names]
    known = [n for n in numbers if n is not None]
    if not known:
        depths = list(range(len(names)))
    else:
        depths, last = [], known[0]
        for number in numbers:
            last = last if number is None else number
            depths.append(last)
    position = {depth: p for p, depth in enumerate(sorted(set(depths)))}
    return [GROUPS[(2 * position[d] + 1) * len(GROUPS) // (2 * len(position))] for d in depths]


def _layer_index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _rank(rank: Rank, group: str) -> int:
    if isinstance(rank, int):
        return rank
    unknown = sorted(set(rank) - set(GROUPS))
    if unknown:
        raise InputError(f"adapter.rank: unknown group {unknown[0]!r}; allowed: {', '.join(GROUPS)}")
    if group not in rank:
        raise InputError(f"adapter.rank: lacks group {group!r}, which this model has")
    return rank[group]
