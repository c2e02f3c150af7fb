"""A saved adapter: PEFT's format, readable without unweft, and beside it what deletion needs.

DIR/adapter_model.safetensors holds the union: lora_A = stacked A_u^T, lora_B = stacked s B_u, alpha = rank.
DIR/blocks/<device>/ holds each block likewise; unweft.json the recipe of the bases and each block's slot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from peers.adapter import lora_config
from peers.blocks import BlockKey, Union
from peers.layout import ModelLayout

PREFIX = "base_model.model."


def write(folder: Path, union: Union, model_name: str, model_sha256: str) -> str:
    """Write the union and each block; returns the hash of the union. Shapes per module: A (N r, d), B (k, N r)."""
    keys = sorted(union.data)
    write_peft(folder, union.layout, tensors(union, keys), max(len(keys), 1), model_name)
    for key in keys:
        write_peft(folder / "blocks" / key.device, union.layout, tensors(union, [key]), 1, model_name)
    blocks = [{"device": k.device, "incarnation": k.incarnation, "slot": union.slots[k]} for k in keys]
    write_index(folder, union.bases.recipe, union.scale, model_name, blocks)
    return union.sha256()


def tensors(union: Union, keys: list[BlockKey]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A (N r, d), B (k, N r)) of each module; one zero rank when there is no block."""
    pairs = {}
    for m in union.layout.modules:
        a = [union.bases.basis(m, union.slots[k]).T for k in keys] or [torch.zeros(m.rank, m.in_features)]
        b = [union.scale * union.b(k, m) for k in keys] or [torch.zeros(m.out_features, m.rank)]
        pairs[m.name] = (torch.cat(a, dim=0), torch.cat(b, dim=1))
    return pairs


def write_peft(
    folder: Path, layout: ModelLayout, pairs: dict[str, tuple[Tensor, Tensor]], blocks: int, model_name: str
) -> None:
    """adapter_config.json and adapter_model.safetensors with alpha = r."""
    folder.mkdir(parents=True, exist_ok=True)
    lora_config(layout, 1, blocks, model_name).save_pretrained(str(folder))
    flat = {}
    for name, (a, b) in pairs.items():
        flat[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
        flat[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
    save_file(flat, folder / "adapter_model.safetensors", {"format": "pt"})


def write_index(
    folder: Path, recipe: dict[str, Any], scale: float, model_name: str, blocks: list[dict[str, Any]]
) -> None:
    index = {"schema": 1, "model": model_name, "scale": scale, "recipe": recipe, "blocks": blocks}
    (folder / "unweft.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
