"""The frozen bases A_u (method 2). Every device computes them from a recipe; they are never sent.

Slot s of module l owns columns [s r, (s+1) r) of P_l Q_d. Q_d is the Q of a thin QR of seeded Gaussian
columns, one Q_d for each distinct d. P_l is a signed permutation, seeded by the module's name. Different
slots are orthogonal. A gated kind of adapter has other bases (shared_bases.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coordinator_free.seeded_random import generator
from peers.errors import InputError
from peers.lora.kinds import KINDS, LORA
from peers.lora.layout import GROUPS, ModelLayout, ModuleShape
from peers.lora.shared_bases import SharedBases

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peers.config import DeviceConfig
    from peers.models.loader import LoadedModel

ALGORITHM = "philox-qr/1"
MODES = ("orthogonal", "independent")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the bases, and the model they belong to. scale: s in dW = s * sum B A^T.

    task_type: PEFT's name for the kind of the model, for exports; None: it has no name for images. kind: name
    of the kind of adapter.
    """

    seed: int
    mode: str
    scale: float
    max_devices: int
    model_name: str
    model_sha256: str
    modules: tuple[ModuleShape, ...]
    task_type: str | None = "CAUSAL_LM"
    kind: str = LORA.name

    @classmethod
    def make(cls, loaded: LoadedModel, config: DeviceConfig) -> Recipe:
        """The recipe of a run. Narrow convolutions are left out (`narrow_convolutions`).

        Raises InputError as ModelLayout.from_model does.
        """
        adapter = config.adapter
        layout = ModelLayout.from_model(loaded.model, loaded.target_modules, adapter.rank)
        narrow = narrow_convolutions(layout, adapter.max_devices if adapter.bases == "orthogonal" else 1)
        kept = tuple(module for module in layout.modules if module.name not in narrow)
        return cls(
            config.seed,
            adapter.bases,
            adapter.scale,
            adapter.max_devices,
            loaded.name,
            loaded.sha256,
            kept or layout.modules,
            None if loaded.image_format else "CAUSAL_LM",
            adapter.kind,
        )

    @cached_property
    def layout(self) -> ModelLayout:
        return ModelLayout(self.modules, KINDS[self.kind])

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON types; `from_dict` reads it. For LoRA it is that of earlier versions."""
        fields = {"algorithm": ALGORITHM, **asdict(self), "modules": [m.to_dict() for m in self.modules]}
        return {name: value for name, value in fields.items() if name != "kind" or value != LORA.name}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """Read a recipe. Raises InputError for another algorithm, wrong fields or values of a wrong type."""
        rest = dict(fields)
        algorithm = rest.pop("algorithm", None)
        if algorithm != ALGORITHM:
            raise InputError(f"recipe.algorithm: {algorithm!r} is not known; allowed: {ALGORITHM!r}")
        try:
            modules = tuple(ModuleShape.from_dict(module) for module in rest.pop("modules"))
            recipe = cls(**rest, modules=modules)
        except (TypeError, KeyError) as error:
            raise InputError(f"recipe: is not complete ({error})") from None
        recipe._check_types()
        return recipe

    def _check_types(self) -> None:
        if type(self.scale) not in (int, float) or not all(type(m.conv1d) is bool for m in self.modules):
            raise InputError("recipe: a field has the wrong type")
        whole = [self.seed, self.max_devices]
        whole += [n for m in self.modules for n in (m.in_features, m.out_features, m.rank)]
        text = [self.model_name, self.model_sha256, self.kind]
        text += [t for m in self.modules for t in (m.name, m.group)]
        whole += [n for m in self.modules for n in m.kernel or ()]
        if not all(type(n) is int for n in whole) or not all(type(t) is str for t in text):
            raise InputError("recipe: a field has the wrong type")
        in_range = self.scale > 0 and self.mode in MODES and all(m.group in GROUPS for m in self.modules)
        in_range &= self.task_type in (None, "CAUSAL_LM") and self.kind in KINDS
        if not in_range or any(n < 1 for n in whole[1:]) or not all(m.whole_channels for m in self.modules):
            raise InputError("recipe: a field is out of range")


class Bases:
    """The bases of a recipe. Raises InputError if a module is too narrow for all slots."""

    def __init__(self, recipe: Recipe) -> None:
        _check_room(recipe)
        self.recipe = recipe
        self._modules = recipe.layout.by_name
        self._q: dict[int, NDArray[np.float64]] = {}
        self._shared: SharedBases | None = None
        if recipe.layout.kind.gated:
            self._shared = SharedBases(ALGORITHM, recipe.seed, recipe.modules, recipe.max_devices)

    def basis(self, module: str, slot: int) -> Tensor:
        """A: [d, r] float32 on the CPU, orthonormal columns. Raises InputError for an unknown slot."""
        shape, slots = self._modules[module], self.recipe.max_devices
        if not 0 <= slot < slots:
            raise InputError(f"adapter.max_devices: there is no slot {slot}; {slots} slots: 0 to {slots - 1}")
        if self._shared is not None:
            columns = self._shared.basis(shape.in_features, slot)
        elif self.recipe.mode == "independent":
            draw = self._generator("independent", module, slot)
            columns = _orthonormal(draw.standard_normal((shape.in_features, shape.rank)))
        else:
            columns = self._turned(shape, slice(slot * shape.rank, (slot + 1) * shape.rank))
        return torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float32))

    def block(self, slot: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The bases of one slot: A by module, [d, r]."""
        return {name: self.basis(name, slot).to(device) for name in self._modules}

    def ups(self, slot: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """P_u of one slot by module, [k, r]; empty for a kind that has none."""
        if self._shared is None:
            return {}
        tallest = max(shape.out_features for shape in self._modules.values())
        drawn = torch.from_numpy(self._shared.up(tallest, slot).astype(np.float32)).to(device)
        return {name: drawn[: shape.out_features] for name, shape in self._modules.items()}

    def _turned(self, shape: ModuleShape, columns: slice) -> NDArray[np.float64]:
        draw = self._generator("turn", shape.name)
        rows = draw.permutation(shape.in_features)
        signs = 1.0 - 2.0 * draw.integers(0, 2, size=shape.in_features)
        turned: NDArray[np.float64] = self._orthogonal(shape.in_features)[rows, columns] * signs[:, None]
        return turned

    def _orthogonal(self, d: int) -> NDArray[np.float64]:
        """Q_d, [d, slots * r]. A column has its own stream, so more slots do not change earlier columns."""
        if d not in self._q:
            rank = max(m.rank for m in self.recipe.modules if m.in_features == d)
            columns = range(self.recipe.max_devices * rank)
            drawn = [self._generator("column", d, j).standard_normal(d) for j in columns]
            self._q[d] = _orthonormal(np.stack(drawn, axis=1))
        return self._q[d]

    def _generator(self, *purpose: str | int) -> np.random.Generator:
        return generator(ALGORITHM, self.recipe.seed, *purpose)


def _orthonormal(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Q of the thin QR. A positive diagonal of R makes it unique."""
    q, r = np.linalg.qr(columns)
    signed: NDArray[np.float64] = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return signed


def narrow_convolutions(layout: ModelLayout, slots: int) -> tuple[str, ...]:
    """The names of convolutions with d < slots * r: the bases of all slots do not fit, so they stay frozen.

    The stem of a model and its 1 x 1 shortcuts are often so narrow. Other modules are refused instead.
    """
    return tuple(m.name for m in layout.modules if m.kernel and slots * m.rank > m.in_features)


def _check_room(recipe: Recipe) -> None:
    slots = recipe.max_devices if recipe.mode == "orthogonal" else 1
    for module in sorted(recipe.modules, key=lambda m: m.in_features // m.rank):
        d, r = module.in_features, module.rank
        if slots * r <= d:
            return
        fits = f"r = {d // slots}" if d >= slots else "no rank"
        raise InputError(
            f"adapter.rank / adapter.max_devices: module {module.name!r} ({module.group}) has d = {d}, "
            f"too few for {slots} slots of r = {r}; with {slots} slots the largest that fits is {fits}, "
            f"with r = {r} it is {d // r} slots"
        )
