"""Hashes of the single blocks of an exported adapter, computed from its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.lora.bases import Recipe
from peers.storage.adapter_folder import (
    BLOCKS,
    WEIGHTS,
    SavedBlock,
    adapter_sha256,
    blocks_sha256,
    weight_names,
)
from peers.unlearning.forget import (
    Placed,
    check_scaling,
    cut,
    read_about,
    read_blocks,
    read_factors,
)

Hashes = dict[BlockKey, str]


@dataclass(frozen=True, slots=True)
class AdapterHashes:
    """SHA-256 in hex. merged: of each block in the adapter. apart: the same from blocks/, if it is there.

    adapter: of all tensors in the file. whole: of an adapter that has the listed blocks and no more. larger:
    files in blocks/ with other tensors than those of the recipe.
    """

    merged: Hashes
    apart: Hashes | None
    adapter: str
    whole: str
    larger: tuple[Path, ...] = ()


def read(adapter: Path) -> AdapterHashes:
    """The hashes of an exported adapter. Raises InputError if a file is missing, damaged or does not fit."""
    recipe, placed = read_about(adapter)
    check_scaling(adapter, recipe)
    merged = _merged_blocks(adapter, recipe, placed)
    apart = read_blocks(adapter, recipe, placed) if (adapter / BLOCKS).is_dir() else None
    return AdapterHashes(
        merged=_hashes(recipe, merged),
        apart=None if apart is None else _hashes(recipe, apart),
        adapter=adapter_sha256(adapter),
        whole=blocks_sha256(recipe.layout, merged),
        larger=tuple(_larger(adapter / BLOCKS, recipe)),
    )


def _larger(folder: Path, recipe: Recipe) -> Iterator[Path]:
    names = {name for shape in recipe.modules for name in weight_names(shape.name)}
    for path in sorted(folder.glob(f"*/{WEIGHTS}")):
        with safe_open(path, "pt") as file:  # reads no tensor
            if not {*file.keys()} <= names:
                yield path


def _hashes(recipe: Recipe, blocks: list[SavedBlock]) -> Hashes:
    return {block.key: blocks_sha256(recipe.layout, [block]) for block in blocks}


def _merged_blocks(adapter: Path, recipe: Recipe, placed: Placed) -> list[SavedBlock]:
    """The blocks, cut out of the merged adapter."""
    factors = read_factors(adapter, recipe)
    blocks = [SavedBlock(key, slot, {}) for key, slot in placed]
    for shape in recipe.modules:
        rows = factors[shape.name][0].shape[0]
        if rows != max(1, len(placed) * shape.rank):
            raise InputError(f"{adapter / WEIGHTS}: {shape.name!r} has another rank than the listed blocks")
        for i, block in enumerate(blocks):
            block.factors[shape.name] = cut(factors[shape.name], slice(i * shape.rank, (i + 1) * shape.rank))
    return blocks
