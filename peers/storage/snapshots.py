"""Snapshots: files with the blocks of a device's model, and the evaluator's model that loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.lora.adapted_model import DenseWeights
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import Block
from peers.storage.tensor_file import load_tensors, save_tensors

if TYPE_CHECKING:
    from peers.config import DeviceConfig
    from peers.models.loader import LoadedModel


def write_snapshot(
    path: Path, tensors: Mapping[str, Tensor], slots: Mapping[str, int], meta: Mapping[str, str]
) -> None:
    """Write `tensors` (B by "<block>/<group>"). A rename at the end hides the partial file from readers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    save_tensors(tensors, unfinished, {**meta, "slots": json.dumps(dict(slots))})
    unfinished.replace(path)


class SnapshotModel:
    """A base model that loads snapshots, one after the other: their blocks are folded into its weights.

    `loaded.model` is changed in place. A `paper-literal` snapshot has only the own block, as the device's
    model has.
    """

    def __init__(self, loaded: LoadedModel, config: DeviceConfig) -> None:
        recipe = Recipe.make(loaded, config)
        self.model = loaded.model
        self._bases = Bases(recipe)
        self._dense = DenseWeights(self.model, recipe.layout, recipe.scale)
        self._device = next(self.model.parameters()).device
        self._by_slot: dict[int, dict[str, Tensor]] = {}

    def load(self, path: Path) -> dict[str, str]:
        """Replace the blocks of the model by those of a snapshot; returns the snapshot's metadata."""
        tensors, meta = load_tensors(path, str(self._device))
        slots: dict[str, int] = json.loads(meta["slots"])
        self._dense.fold([self._block(key, slots[str(key)], tensors) for key in _keys(tensors)])
        return meta

    def _block(self, key: BlockKey, slot: int, tensors: Mapping[str, Tensor]) -> Block:
        if slot not in self._by_slot:
            self._by_slot[slot] = self._bases.block(slot, self._device)
        groups = self._bases.recipe.layout.groups
        return Block(slot, {g: tensors[f"{key}/{g}"] for g in groups}, self._by_slot[slot])


def _keys(tensors: Mapping[str, Tensor]) -> list[BlockKey]:
    return sorted({BlockKey.parse(name.rpartition("/")[0]) for name in tensors})
