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

from peers import export
from peers.bases import Bases, Recipe
from peers.blocks import gram_coordinates
from peers.errors import InputError
from peers.layout import ModelLayout

Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What was done: `path` is blocks (the block's file was there) or gram (only the merged adapter was)."""

    path: str
    forgotten: str
    survivors: tuple[str, ...]
    residual: float  # gram: largest part of dW outside the known bases; 0 when every block is accounted for


def forget(adapter: Path, device: str, out: Path) -> ForgetReport:
    """Write to `out` the adapter without the device's block.

    Raises InputError for a folder that is no such adapter, an unknown device, or an `out` that is in use.
    """
    index = _read_index(adapter)
    known = [b["device"] for b in index["blocks"]]
    if device not in known:
        raise InputError(
            f"--device: {device!r} has no block in {adapter}; it holds {', '.join(known) or 'none'}"
        )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty; choose another folder")
    recipe = Recipe.from_dict(index["recipe"])
    layout = recipe.layout
    has_blocks = all((adapter / "blocks" / d / "adapter_model.safetensors").exists() for d in known)
    if has_blocks:
        blocks = {d: _read_pairs(adapter / "blocks" / d, layout) for d in known}
        residual = 0.0
    else:
        blocks, residual = _recover(adapter, index, recipe)
    kept = [b for b in index["blocks"] if b["device"] != device]
    _write(out, recipe, kept, blocks)
    path = "blocks" if has_blocks else "gram"
    return ForgetReport(path, device, tuple(b["device"] for b in kept), residual)


def _recover(adapter: Path, index: dict[str, Any], recipe: Recipe) -> tuple[dict[str, Pairs], float]:
    """Each block's coordinates from the merged adapter alone: C = dW A (A^T A)^-1 with the recipe's bases."""
    bases, layout = Bases(recipe), recipe.layout
    merged = _read_pairs(adapter, layout)
    blocks: dict[str, Pairs] = {b["device"]: {} for b in index["blocks"]}
    residual = 0.0
    for module in layout.modules:
        a, b = merged[module.name]
        delta = b @ a
        slots = [bases.basis(module.name, block["slot"]) for block in index["blocks"]]
        coordinates = gram_coordinates(delta, slots)
        for block, basis, c in zip(index["blocks"], slots, coordinates, strict=True):
            blocks[block["device"]][module.name] = (basis.T, c.float())
        rebuilt = sum(
            (c.float() @ basis.T for c, basis in zip(coordinates, slots, strict=True)),
            torch.zeros_like(delta),
        )
        residual = max(residual, float((delta - rebuilt).abs().max()))
    return blocks, residual


def _write(out: Path, recipe: Recipe, kept: list[dict[str, Any]], blocks: dict[str, Pairs]) -> None:
    layout = recipe.layout
    union: Pairs = {}
    for m in layout.modules:
        a = [blocks[k["device"]][m.name][0] for k in kept] or [torch.zeros(m.rank, m.in_features)]
        b = [blocks[k["device"]][m.name][1] for k in kept] or [torch.zeros(m.out_features, m.rank)]
        union[m.name] = (torch.cat(a), torch.cat(b, dim=1))
    export.write_peft(out, layout, union, max(len(kept), 1), recipe.model_name)
    for block in kept:
        name = block["device"]
        export.write_peft(out / "blocks" / name, layout, blocks[name], 1, recipe.model_name)
    export.write_index(out, recipe.to_dict(), kept)


def _read_index(adapter: Path) -> dict[str, Any]:
    path = adapter / "unweft.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        blocks = index["blocks"]
        assert all({"device", "incarnation", "slot"} <= set(b) for b in blocks) and index["recipe"]["modules"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path}: no adapter that unweft wrote ({type(error).__name__})") from None
    return dict(index)


def _read_pairs(folder: Path, layout: ModelLayout) -> Pairs:
    path = folder / "adapter_model.safetensors"
    try:
        flat = load_file(path)
        names = [m.name for m in layout.modules]
        prefix = export.PREFIX
        return {n: (flat[f"{prefix}{n}.lora_A.weight"], flat[f"{prefix}{n}.lora_B.weight"]) for n in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as the adapter ({error})") from None
