"""History-free deletion from a saved adapter (method 3), without data, base model or run folder.

With blocks/, the device's blocks are dropped. Without blocks/, the merged adapter is split into blocks: the
recipe in unweft.json gives the bases, and C = dW A (A^T A)^-1 gives the contributions. This is exact for
non-orthogonal bases too. dW is the product of the two factors of the file. The factors of a kind of adapter
that is not dense are taken apart in the same way, though the product is not what it computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import gram_coordinates
from peers.lora.layout import ModuleShape
from peers.storage import receipt_chain
from peers.storage.adapter_folder import (
    ABOUT,
    BLOCKS,
    CONFIG,
    FORMAT,
    WEIGHTS,
    Factors,
    SavedBlock,
    folder_of,
    weight_names,
    write_adapter,
)

TOLERANCE = 1e-2  # allowed share of a module's dW outside the known blocks; a file in fp16 has 3e-4
Placed = list[tuple[BlockKey, int]]  # the blocks of an adapter, in the order of the file, with their slots


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """The result of `forget`. path: "blocks" (from blocks/) or "gram" (from the merged adapter).

    survivors: the kept blocks. residual: the largest share of a module's dW outside all known blocks. sha256:
    of the new adapter.
    """

    path: str
    forgotten: str
    survivors: tuple[str, ...]
    residual: float
    sha256: str


def forget(adapter: Path, device: str, out: Path) -> ForgetReport:
    """Write the adapter without the blocks of `device` to `out`. `adapter` stays unchanged.

    Raises InputError if unweft did not write the adapter, if a file is missing or damaged, if the device has
    no block, if `out` is not empty, if the blocks do not add up to the adapter, and, for a merged adapter, if
    N r > d.
    """
    _check_free(out)
    recipe, placed = read_about(adapter)
    if device not in {key.device for key, _ in placed}:
        known = ", ".join(sorted({key.device for key, _ in placed})) or "none"
        raise InputError(f"--device: {device!r} has no block in {adapter}; it holds {known}")
    check_scaling(adapter, recipe)
    split, blocks, residual = _take_apart(adapter, recipe, placed)
    kept = [block for block in blocks if block.key.device != device]
    digest = write_adapter(out, recipe, kept)
    receipt_chain.keep(adapter, out)
    survivors = tuple(str(block.key) for block in kept)
    return ForgetReport("blocks" if split else "gram", device, survivors, residual, digest)


def forget_blocks(adapter: Path, gone: Collection[BlockKey]) -> None:
    """Delete blocks from an adapter in place. Readers see the adapter as it was or as it is then.

    Files in blocks/ of owners that the adapter does not list are deleted too. Raises InputError as `forget`.
    """
    recipe, placed = read_about(adapter)
    check_scaling(adapter, recipe)
    _, blocks, _ = _take_apart(adapter, recipe, placed)
    write_adapter(adapter, recipe, [block for block in blocks if block.key not in gone])


def _take_apart(adapter: Path, recipe: Recipe, placed: Placed) -> tuple[bool, list[SavedBlock], float]:
    """Whether the adapter has blocks/, its blocks, and the share of the adapter outside all of them."""
    merged = read_factors(adapter, recipe)
    split = (adapter / BLOCKS).is_dir()
    blocks = read_blocks(adapter, recipe, placed) if split else _split(recipe, placed, merged)
    residual = _residual(recipe, blocks, merged)
    if not residual <= TOLERANCE:
        advice = f"; without {BLOCKS}/ the merged adapter alone is used" if split else ""
        raise InputError(
            f"{adapter}: {residual:.1%} of the adapter is in none of its blocks: it was changed after it was "
            f"written, or {ABOUT} is not its own{advice}"
        )
    return split, blocks, residual


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out: {out} exists and is not an empty folder; choose another")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): no adapter that unweft wrote") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: is no JSON object")
    return found


def read_about(adapter: Path) -> tuple[Recipe, Placed]:
    """The recipe of an adapter, and its blocks. Raises InputError if unweft did not write the adapter."""
    path = adapter / ABOUT
    about = _read_json(path)
    if about.get("format") != FORMAT:
        raise InputError(f"{path}: format {about.get('format')!r} is not known; allowed: {FORMAT}")
    try:
        recipe = Recipe.from_dict(about["recipe"])
        placed = [(BlockKey(b["device"], b["incarnation"]), b["slot"]) for b in about["blocks"]]
        right = all(type(k.device) is str and type(k.incarnation) is type(s) is int for k, s in placed)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not complete ({error})") from None
    if not right:
        raise InputError(f"{path}: blocks need a device (text), an incarnation and a slot (integers)")
    return recipe, sorted(placed)


def check_scaling(adapter: Path, recipe: Recipe) -> None:
    """Every export for PEFT has scaling 1. With another scaling the factors of the file would not give dW.

    Raises InputError.
    """
    if not recipe.layout.kind.dense:
        return
    path = adapter / CONFIG
    config = _read_json(path)
    same = config.get("lora_alpha") == config.get("r")
    same &= config.get("alpha_pattern", {}) == config.get("rank_pattern", {})
    if not same or config.get("use_rslora"):
        raise InputError(f"{path}: lora_alpha differs from r: not as unweft wrote it")


def read_factors(folder: Path, recipe: Recipe) -> dict[str, Factors]:
    """lora_A [R, d] and lora_B [k, R] of each module, float32, with R the sum of the blocks' ranks."""
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
        factors = {}
        for shape in recipe.modules:
            a, b = (tensors[name].float().flatten(1) for name in weight_names(shape.name))
            if a.shape[1:] != (shape.in_features,) or b.shape != (shape.out_features, a.shape[0]):
                raise InputError(f"{path}: {shape.name!r} has another shape than {ABOUT} says")
            factors[shape.name] = (a, b)
    except (OSError, SafetensorError, IndexError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except KeyError as error:
        raise InputError(f"{path}: lacks {error}") from None
    return factors


def read_blocks(adapter: Path, recipe: Recipe, placed: Placed) -> list[SavedBlock]:
    """The blocks from blocks/. The file of an owner stacks its blocks, sorted by incarnation."""
    blocks = []
    for owner in dict.fromkeys(key.device for key, _ in placed):
        own = [(key, slot) for key, slot in placed if key.device == owner]
        folder = adapter / BLOCKS / folder_of(owner)
        factors = read_factors(folder, recipe)
        for shape in recipe.modules:
            if factors[shape.name][0].shape[0] != len(own) * shape.rank:
                raise InputError(f"{folder}: {shape.name!r} has another rank than {ABOUT} says")
        for i, (key, slot) in enumerate(own):
            parts = {
                m.name: cut(factors[m.name], slice(i * m.rank, (i + 1) * m.rank)) for m in recipe.modules
            }
            blocks.append(SavedBlock(key, slot, parts))
    return blocks


def cut(factors: Factors, ranks: slice) -> Factors:
    """The columns of one block in factors that stack several blocks."""
    return factors[0][ranks], factors[1][:, ranks]


def _split(recipe: Recipe, placed: Placed, merged: dict[str, Factors]) -> list[SavedBlock]:
    """The blocks, computed from the merged adapter."""
    bases = Bases(recipe)
    blocks = [SavedBlock(key, slot, {}) for key, slot in placed]
    for shape in recipe.modules:
        stack = [bases.basis(shape.name, slot) for _, slot in placed]
        for block, basis, c in zip(blocks, stack, _coordinates(shape, stack, merged), strict=True):
            block.factors[shape.name] = (basis.T.contiguous(), c.float())
    return blocks


def _coordinates(shape: ModuleShape, bases: list[Tensor], merged: dict[str, Factors]) -> list[Tensor]:
    try:
        return gram_coordinates(_delta(merged[shape.name]), bases)
    except InputError as error:
        raise InputError(f"module {shape.name!r}: {error}") from None


def _delta(factors: Factors) -> Tensor:
    """dW = lora_B lora_A, [k, d] float64."""
    return factors[1].double() @ factors[0].double()


def _residual(recipe: Recipe, blocks: list[SavedBlock], merged: dict[str, Factors]) -> float:
    """max over modules of ||dW - sum_u C_u A_u^T|| / ||dW||."""
    largest = 0.0
    for shape in recipe.modules:
        delta = _delta(merged[shape.name])
        known = sum((_delta(block.factors[shape.name]) for block in blocks), torch.zeros_like(delta))
        apart, whole = float((delta - known).norm()), float(delta.norm())
        if not math.isfinite(apart):
            return math.inf
        if apart:
            largest = max(largest, apart / whole if whole else math.inf)
    return largest
