"""Adapters as folders; plain PEFT loads those of dense kinds (docs/records.md).

DIR/adapter_model.safetensors has all blocks: lora_A stacks A_u^T, lora_B stacks s B_u. With lora_alpha = r,
PEFT's scaling is 1. DIR/blocks/<owner>/ has the same for the blocks of one owner. DIR/unweft.json lists the
blocks in order and holds the recipe of the bases. A kind of adapter that is not dense has the same tensors,
but no adapter_config.json: plain PEFT would compute dW with them (unlearning/saved_model.py loads it).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from coordinator_free.ranges import path_component
from peers.lora.bases import Recipe
from peers.lora.blocks import BlockSet
from peers.lora.kinds import LORA, AdapterKind
from peers.lora.layout import ModelLayout, ModuleShape
from peers.storage import receipt_chain
from peers.storage.tensor_file import save_tensors

FORMAT = 1
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ABOUT = "unweft.json"
BLOCKS = "blocks"
Factors = tuple[Tensor, Tensor]  # lora_A [r, d] = A^T and lora_B [k, r] = s B; float32, CPU


@dataclass(frozen=True)
class SavedBlock:
    """One block in the form of the files. factors: by module."""

    key: BlockKey
    slot: int
    factors: dict[str, Factors]


def saved_blocks(union: BlockSet, keys: Sequence[BlockKey]) -> list[SavedBlock]:
    """Held blocks in the form of the files."""
    return [SavedBlock(key, union[key].slot, _factors(union, key)) for key in keys]


def _factors(union: BlockSet, key: BlockKey) -> dict[str, Factors]:
    bases = union[key].bases
    return {
        name: (bases[name].T.cpu().contiguous(), (union.scale * union.factor(key, name)).cpu())
        for name in union.layout.by_name
    }


def write_adapter(folder: Path, recipe: Recipe, blocks: Sequence[SavedBlock]) -> str:
    """Write the adapter of the blocks as `folder`, in place of an earlier export; returns its sha256.

    A new folder is written beside it and then renamed. An empty folder is filled, because it may be a link, a
    mount point or a shell's current folder. A chain of receipts beside the earlier export stays there.
    Raises FileExistsError if the folder has other files.
    """
    empty = folder.exists() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / ABOUT).exists():
        raise FileExistsError(f"{folder} holds other things than an adapter that unweft wrote")
    name = f".{folder.name}-{os.getpid()}"
    unfinished = folder / name if empty else folder.with_name(name)
    replaced = folder.with_name(f"{name}-replaced")
    for left in (unfinished, replaced):  # by a killed process that had the same number
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        digest = _write_all(unfinished, recipe, blocks)
        if empty:
            for path in sorted(unfinished.iterdir(), key=lambda path: path.name == ABOUT):  # ABOUT: last
                path.rename(folder / path.name)
        else:
            receipt_chain.keep(folder, unfinished)
            _replace(folder, unfinished, replaced)
    finally:
        for left in (unfinished, replaced):
            shutil.rmtree(left, ignore_errors=True)
    return digest


def _replace(folder: Path, unfinished: Path, replaced: Path) -> None:
    """Put `unfinished` in the place of `folder`. If that fails, the earlier folder stays."""
    try:
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    except OSError:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise


def _write_all(folder: Path, recipe: Recipe, blocks: Sequence[SavedBlock]) -> str:
    tensors = _write_peft(folder, recipe, blocks)
    for owner in sorted({block.key.device for block in blocks}):
        own = [block for block in blocks if block.key.device == owner]
        _write_peft(folder / BLOCKS / folder_of(owner), recipe, own)
    digest = tensors_sha256(tensors, recipe.layout.kind)
    about = {
        "format": FORMAT,
        "adapter_sha256": digest,
        "recipe": recipe.to_dict(),
        "blocks": [
            {"device": b.key.device, "incarnation": b.key.incarnation, "slot": b.slot}
            for b in _ordered(blocks)
        ],
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return digest


def folder_of(owner: str) -> str:
    """The owner of a block as a file name. In an adapter of an earlier version it may be any text."""
    name = quote(owner, safe="")
    return path_component(f"%2E{name[1:]}" if name.startswith(".") else name)


def adapter_sha256(folder: Path) -> str:
    """The hash of an exported adapter, computed from its files; equals `Learner.sha256` at the export."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    kind = Recipe.from_dict(about["recipe"]).layout.kind
    return tensors_sha256(load_file(folder / WEIGHTS), kind)


def blocks_sha256(layout: ModelLayout, blocks: Sequence[SavedBlock]) -> str:
    """The hash that the exported adapter of these blocks would have."""
    return tensors_sha256(adapter_tensors(layout, blocks), layout.kind)


def tensors_sha256(tensors: Mapping[str, Tensor], kind: AdapterKind = LORA) -> str:
    """Hash of name, shape, dtype and bytes of the tensors, sorted by name.

    kind: the name of a kind that is not dense is hashed too: the tensors alone do not tell the function.
    """
    digest = sha256(b"" if kind.dense else f"adapter.kind={kind.name};".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weight_names(module: str) -> tuple[str, str]:
    """The names under which PEFT saves lora_A and lora_B of a module."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def adapter_tensors(layout: ModelLayout, blocks: Sequence[SavedBlock]) -> dict[str, Tensor]:
    """The tensors of the file: blocks side by side, sorted by key. Without blocks: zeros of rank 1.

    The factors of a Conv2d have PEFT's shapes: lora_A [r, C, h, w] and lora_B [k, r, 1, 1].
    """
    tensors = {}
    for shape in layout.modules:
        factors = [block.factors[shape.name] for block in _ordered(blocks)] or [_nothing(shape)]
        a_name, b_name = weight_names(shape.name)
        down, up = shape.factor_shapes
        tensors[a_name] = torch.cat([a for a, _ in factors], dim=0).reshape(down).contiguous()
        tensors[b_name] = torch.cat([b for _, b in factors], dim=1).reshape(up).contiguous()
    return tensors


def _ordered(blocks: Sequence[SavedBlock]) -> list[SavedBlock]:
    return sorted(blocks, key=lambda block: block.key)


def _nothing(shape: ModuleShape) -> Factors:
    return torch.zeros(1, shape.in_features), torch.zeros(shape.out_features, 1)


def _write_peft(folder: Path, recipe: Recipe, blocks: Sequence[SavedBlock]) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors(recipe.layout, blocks)
    save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    if recipe.layout.kind.dense:
        peft_config(recipe, tensors).save_pretrained(folder)
    return tensors


def peft_config(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Any:
    """PEFT's configuration for the tensors of a file. alpha = r, since lora_B includes the scale.

    Patterns are set only for modules of another rank.
    """
    ranks = {m.name: tensors[weight_names(m.name)[0]].shape[0] for m in recipe.modules}
    rank = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(ranks),
        fan_in_fan_out=any(m.conv1d for m in recipe.modules),
        base_model_name_or_path=recipe.model_name,
        task_type=recipe.task_type,
        inference_mode=True,
    )
