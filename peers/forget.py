"""History-free deletion from a saved adapter (method 3): no data, no base model, no run folder needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peers.bases import Bases, Recipe
from peers.blocks import BlockKey, gram_coordinates
from peers.errors import InputError
from peers.export import ABOUT, BLOCKS, WEIGHTS, Factors, SavedBlock, folder_of, weight_names, write_adapter


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What was done: `path` is blocks (each block's file was there) or gram (only the merged adapter was)."""

    path: str
    forgotten: str
    survivors: tuple[str, ...]
    residual: float  # gram: largest entry of dW outside the known bases, about rounding error


def forget(adapter: Path, device: str, out: Path) -> ForgetReport:
    """Write to `out` the adapter without the device's blocks.

    Raises InputError for a folder that is no such adapter, an unknown device, an `out` that is in use, or a
    merged adapter whose blocks cannot be told apart (N r > d).
    """
    recipe, index = _read_about(adapter)
    known = sorted({key.device for key, _ in index})
    if device not in known:
        raise InputError(
            f"--device: {device!r} has no block in {adapter}; it holds {', '.join(known) or 'none'}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} exists and is not an empty folder; choose another")
    apart = all((adapter / BLOCKS / folder_of(owner) / WEIGHTS).exists() for owner in known)
    blocks, residual = _read_blocks(adapter, recipe, index) if apart else _recover(adapter, recipe, index)
    kept = [block for block in blocks if block.key.device != device]
    write_adapter(out, recipe, kept)
    survivors = tuple(str(block.key) for block in kept)
    return ForgetReport("blocks" if apart else "gram", device, survivors, residual)


def _read_blocks(
    adapter: Path, recipe: Recipe, index: list[tuple[BlockKey, int]]
) -> tuple[list[SavedBlock], float]:
    """From blocks/<owner>/: an owner's incarnations lie side by side in order."""
    blocks = []
    for owner in sorted({key.device for key, _ in index}):
        own = [(key, slot) for key, slot in index if key.device == owner]
        pairs = _read_factors(adapter / BLOCKS / folder_of(owner), recipe, len(own))
        blocks += [SavedBlock(key, slot, pairs[i]) for i, (key, slot) in enumerate(own)]
    return blocks, 0.0


def _recover(
    adapter: Path, recipe: Recipe, index: list[tuple[BlockKey, int]]
) -> tuple[list[SavedBlock], float]:
    """Every block's coordinates from the merged dW alone: C = dW A (A^T A)^-1 with the recipe's bases."""
    bases, merged = Bases(recipe), _read_merged(adapter, recipe)
    found: list[dict[str, Factors]] = [{} for _ in index]
    residual = 0.0
    for module, (a, b) in merged.items():
        slots = [bases.basis(module, slot) for _, slot in index]
        coordinates = gram_coordinates(b @ a, slots)
        rebuilt = torch.zeros_like(b @ a)
        for block, basis, c in zip(found, slots, coordinates, strict=True):
            block[module] = (basis.T.contiguous(), c.float().contiguous())
            rebuilt += block[module][1] @ block[module][0]
        residual = max(residual, float((b @ a - rebuilt).abs().max()))
    return [SavedBlock(key, slot, found[i]) for i, (key, slot) in enumerate(index)], residual


def _read_factors(folder: Path, recipe: Recipe, count: int) -> list[dict[str, Factors]]:
    """The `count` blocks that lie side by side in one file."""
    merged = _read_merged(folder, recipe)
    blocks: list[dict[str, Factors]] = [{} for _ in range(count)]
    for module in recipe.modules:
        a, b = merged[module.name]
        if a.shape != (count * module.rank, module.in_features):
            raise InputError(
                f"{folder / WEIGHTS}: {module.name} does not hold {count} blocks of rank {module.rank}"
            )
        for i, block in enumerate(blocks):
            rows = slice(i * module.rank, (i + 1) * module.rank)
            block[module.name] = (a[rows].contiguous(), b[:, rows].contiguous())
    return blocks


def _read_merged(folder: Path, recipe: Recipe) -> dict[str, tuple[Tensor, Tensor]]:
    """(lora_A, lora_B) by module, float32. Raises InputError."""
    path = folder / WEIGHTS
    try:
        flat = load_file(path)
        pairs = {m.name: [flat[name].float() for name in weight_names(m.name)] for m in recipe.modules}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as this adapter's weights ({error})") from None
    for m in recipe.modules:
        a, b = pairs[m.name]
        if a.shape[1:] != (m.in_features,) or b.shape != (m.out_features, a.shape[0]):
            raise InputError(f"{path}: {m.name} has shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return {name: (a, b) for name, (a, b) in pairs.items()}


def _read_about(adapter: Path) -> tuple[Recipe, list[tuple[BlockKey, int]]]:
    path = adapter / ABOUT
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [(BlockKey(b["device"], b["incarnation"]), b["slot"]) for b in about["blocks"]]
        recipe = about["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no adapter that unweft wrote ({type(error).__name__}: {error})") from None
    return Recipe.from_dict(recipe), sorted(rows)
