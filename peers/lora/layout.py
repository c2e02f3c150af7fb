"""The adapted modules, and the layout of a block's matrices over them.

A block has one float32 matrix for each group (early, mid, late by depth). It stacks the trained matrices of
the group's modules in the layout's order: [rows_g, r_g], with rows_g the sum of their out_features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coordinator_free.correction.residuals import Size
from peers.errors import InputError
from peers.lora.convolution import check_plain
from peers.lora.kinds import LORA, AdapterKind
from peers.models.target_modules import is_target
from transport.wire.codec_names import payload_bytes

GROUPS = ("early", "mid", "late")
Rank = int | Mapping[str, int]


@dataclass(frozen=True)
class ModuleShape:
    """One adapted module: W is [k = out_features, d = in_features].

    conv1d (GPT-2): stored transposed. kernel: height and width of a Conv2d's kernel. Its W is the flattened
    [k, channels * height * width], and its inputs are the patches of the image.
    """

    name: str
    in_features: int
    out_features: int
    group: str
    rank: int
    conv1d: bool = False
    kernel: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON types. Without a kernel they are those of earlier versions."""
        return {name: value for name, value in asdict(self).items() if name != "kernel" or value is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModuleShape:
        """Read the fields. Raises TypeError for other names."""
        kernel = fields.get("kernel")
        return cls(**{**fields, "kernel": None if kernel is None else tuple(kernel)})

    @property
    def whole_channels(self) -> bool:
        """Whether d is a whole number of kernels, as it is in a layout that was made from a model."""
        kernel = self.kernel
        return kernel is None or (len(kernel) == 2 and self.in_features % math.prod(kernel) == 0)

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes that PEFT gives to lora_A and lora_B of any rank; -1 stands for the rank."""
        if self.kernel is None:
            return (-1, self.in_features), (self.out_features, -1)
        channels = self.in_features // math.prod(self.kernel)
        return (-1, channels, *self.kernel), (self.out_features, -1, 1, 1)


class ModelLayout:
    """The adapted modules in a fixed order, their rows in the group's matrix, and the kind of the adapter."""

    def __init__(self, modules: Sequence[ModuleShape], kind: AdapterKind = LORA) -> None:
        self.modules, self.kind = tuple(modules), kind
        self.groups = tuple(g for g in GROUPS if any(m.group == g for m in self.modules))
        self._rows = {g: sum(m.out_features for m in self.modules if m.group == g) for g in self.groups}
        self._ranks = {m.group: kind.columns(m.rank) for m in self.modules}  # one rank per group
        self._slices = {g: _stack([m for m in self.modules if m.group == g]) for g in self.groups}

    @classmethod
    def from_model(cls, model: nn.Module, target_modules: Sequence[str], rank: Rank) -> ModelLayout:
        """The layout of the modules whose name is a target, or ends in one after a dot, in the model's order.

        Raises InputError if there is no such module, if one is neither Linear, Conv1D nor a plain Conv2d, or
        if `rank` has an unknown group or lacks one.
        """
        found = [(n, m) for n, m in model.named_modules() if is_target(n, target_modules)]
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
        """r_g, the columns of the group's matrix: the rank of the group, or 1 for a gated kind."""
        return self._ranks[group]

    def block_bytes(self, codec: str) -> int:
        """The payload bytes of a whole block in a codec, without headers."""
        return sum(payload_bytes(codec, self.rows(group), self.rank(group)) for group in self.groups)

    def size(self, group: str) -> Size:
        """r_g, and the number of the group's parameters that one device trains."""
        return Size(self.rank(group), self.rows(group) * self.rank(group))

    def slices(self, group: str) -> dict[str, slice]:
        """The rows of each module in the group's matrix, by module."""
        return self._slices[group]

    def zeros(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """A block at B = 0: float32 [rows_g, r_g] by group."""
        return {g: torch.zeros(self.rows(g), self.rank(g), device=device) for g in self.groups}


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
    if isinstance(module, nn.Conv2d):
        height, width = check_plain(name, module)
        d = module.in_channels * height * width
        return ModuleShape(name, d, module.out_channels, group, rank, kernel=(height, width))
    kind = type(module).__name__
    raise InputError(
        f"model.target_modules: {name!r} is a {kind}; allowed: Linear, Conv1D and Conv2d modules"
    )


def _groups(names: Sequence[str]) -> list[str]:
    """The group of each module: early, mid and late are thirds of the depth.

    Layer p of L has depth (p + 1/2) / L, which spreads few layers evenly. A module outside the numbered
    layers has the depth of the module before it. Without numbers in the names, the order is the depth.
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
    """The first number in the name, but for a number at its end: it is a place in a head or a small stack."""
    return next((int(part) for part in name.split(".")[:-1] if part.isdecimal()), None)


def _rank(rank: Rank, group: str) -> int:
    if isinstance(rank, int):
        return rank
    unknown = sorted(set(rank) - set(GROUPS))
    if unknown:
        raise InputError(f"adapter.rank: unknown group {unknown[0]!r}; allowed: {', '.join(GROUPS)}")
    if group not in rank:
        raise InputError(f"adapter.rank: lacks group {group!r}, which this model has")
    return rank[group]
