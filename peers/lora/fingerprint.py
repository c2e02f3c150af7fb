"""The fingerprint that two peers compare at their first contact: same model, same bases?

The last bits of LAPACK differ between machines. Peers therefore compare the recipe exactly, and numbers of
the bases to 1e-6 (method 2).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from peers.errors import InputError
from peers.lora.bases import ALGORITHM, Bases, Recipe
from peers.lora.kinds import LORA
from peers.lora.layout import ModuleShape

TOLERANCE = 1e-6
SHOWN_SHAPES = 48  # kinds of modules in a fingerprint, which has to fit into one small message
SKETCHED_WIDTHS = 8
SHOWN_CHARACTERS = 64


@dataclass(frozen=True)
class Fingerprint:
    """recipe: fields by name. shapes: kinds of modules, for error texts. sketch: numbers of the bases."""

    recipe: dict[str, str | int | float]
    shapes: tuple[str, ...]
    sketch: tuple[float, ...]

    @classmethod
    def make(cls, bases: Bases) -> Fingerprint:
        recipe = bases.recipe
        return cls(_fields(recipe), _shapes(recipe.modules)[:SHOWN_SHAPES], _sketch(bases))

    @property
    def sha256(self) -> str:
        """Hash of the recipe alone."""
        return sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The fingerprint as scalars, lists and maps, for a message."""
        return {
            "recipe": dict(self.recipe),
            "shapes": list(self.shapes),
            "sketch": list(self.sketch),
            "sha256": self.sha256,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Fingerprint:
        """Read a fingerprint. Raises InputError if it is none."""
        recipe, shapes, sketch = (fields.get(name) for name in ("recipe", "shapes", "sketch"))
        if not isinstance(recipe, dict) or not all(isinstance(v, str | int | float) for v in recipe.values()):
            raise InputError("fingerprint: no recipe of names and values")
        if not isinstance(shapes, list | tuple) or not all(isinstance(s, str) for s in shapes):
            raise InputError("fingerprint: no list of shapes")
        if not isinstance(sketch, list | tuple) or not all(isinstance(x, int | float) for x in sketch):
            raise InputError("fingerprint: no sketch of numbers")
        return cls(dict(recipe), tuple(shapes), tuple(map(float, sketch)))

    def difference(self, other: Fingerprint) -> str | None:
        """The differences, field by field ("seed: 0 here, 1 there"); None if both are equal."""
        here, there = self.recipe, other.recipe
        found = [
            f"{name}: {_shown(here.get(name, LORA.name))} here, {_shown(there.get(name, LORA.name))} there"
            for name in dict.fromkeys([*here, *there])
            if here.get(name) != there.get(name) and name != "modules"
        ]
        if here.get("modules") != there.get("modules"):
            found.append(_shape_difference(self.shapes, other.shapes))
        return "; ".join(found) or self._sketch_difference(other)

    def _sketch_difference(self, other: Fingerprint) -> str | None:
        if len(self.sketch) != len(other.sketch):
            return f"bases: {len(self.sketch)} numbers here, {len(other.sketch)} there"
        gaps = [abs(a - b) for a, b in zip(self.sketch, other.sketch, strict=True)]
        if all(gap <= TOLERANCE for gap in gaps):  # false for nan
            return None
        largest = f"{max(gaps):.1e} (allowed {TOLERANCE})"
        return f"bases: same recipe, but numbers differ by {largest}: other libraries?"


def _fields(recipe: Recipe) -> dict[str, str | int | float]:
    """Fields by key path of the scenario. The model's name may be a local path, so its hash stands for it.

    The kind of adapter is left out for LoRA, as in earlier versions.
    """
    modules = json.dumps([m.to_dict() for m in recipe.modules], sort_keys=True)
    fields: dict[str, str | int | float] = {
        "algorithm": ALGORITHM,
        "seed": recipe.seed,
        "adapter.bases": recipe.mode,
        "adapter.scale": recipe.scale,
        "adapter.max_devices": recipe.max_devices,
        "base model": recipe.model_sha256,
        "modules": sha256(modules.encode()).hexdigest(),
    }
    return fields if recipe.kind == LORA.name else {**fields, "adapter.kind": recipe.kind}


def _shapes(modules: tuple[ModuleShape, ...]) -> tuple[str, ...]:
    """The number of modules of each kind, e.g. "4 x q_proj 128->128 early r=8"."""
    names = [m.name.rpartition(".")[2][:SHOWN_CHARACTERS] for m in modules]
    kinds = Counter(
        f"{name} {m.in_features}->{m.out_features} {m.group} r={m.rank}"
        for name, m in zip(names, modules, strict=True)
    )
    return tuple(f"{count} x {kind}" for kind, count in kinds.items())


def _sketch(bases: Bases) -> tuple[float, ...]:
    """Per distinct d: weighted sums of the first and the last usable column of the first module.

    Of a gated kind, the same numbers of P_u follow, per distinct k.
    """
    modules, ends = bases.recipe.modules, ((0, 0), (bases.recipe.max_devices - 1, -1))
    widths = _first_of_each({m.name: m.in_features for m in modules})
    numbers = [_weighted(bases.basis(name, slot)[:, column]) for name in widths for slot, column in ends]
    if bases.recipe.layout.kind.gated:
        heights = _first_of_each({m.name: m.out_features for m in modules})
        ups = {slot: bases.ups(slot) for slot, _ in ends}
        numbers += [_weighted(ups[slot][name][:, column]) for name in heights for slot, column in ends]
    return tuple(numbers)


def _first_of_each(sizes: Mapping[str, int]) -> list[str]:
    """The first name of each size, SKETCHED_WIDTHS at most."""
    first: dict[int, str] = {}
    for name, size in sizes.items():
        first.setdefault(size, name)
    return list(first.values())[:SKETCHED_WIDTHS]


def _weighted(column: Tensor) -> float:
    return float(torch.arange(1, len(column) + 1, dtype=torch.float64).cos() @ column.double())


def _shape_difference(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    only_here = [s for s in here if s not in there]
    only_there = [s for s in there if s not in here]
    if not only_here and not only_there:
        return "modules: the same shapes under other names"
    return f"modules: {_listed(only_here)} here, {_listed(only_there)} there"


def _listed(shapes: list[str]) -> str:
    more = f" and {len(shapes) - 2} more kinds" if len(shapes) > 2 else ""
    return ", ".join(shapes[:2]) + more if shapes else "nothing else"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS // 2 else f"{text[:12]}…"
