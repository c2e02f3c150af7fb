"""Snapshots: files with the blocks of a device's model, and the evaluator's model that loads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.lora.adapted_model import DenseWeights, FactorHooks
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import Block
from peers.storage.adapter_folder import tensors_sha256
from peers.storage.tensor_file import load_tensors, save_tensors

if TYPE_CHECKING:
    from peers.config import DeviceConfig
    from peers.models.loader import LoadedModel


def write_snapshot(
    path: Path,
    tensors: Mapping[str, Tensor],
    slots: Mapping[str, int],
    meta: Mapping[str, str],
    durable: bool = False,
) -> None:
    """Write `tensors` (B by "<block>/<group>"). A rename at the end hides the partial file from readers.

    durable: the file is on the disk when this returns, so that a crash of the machine leaves a whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    save_tensors(tensors, unfinished, {**meta, "slots": json.dumps(dict(slots))})
    if durable:
        _flush(unfinished)
    unfinished.replace(path)
    if durable:
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Snapshot:
    """The content of a snapshot. tensors: B by "<block>/<group>", on the CPU."""

    tensors: dict[str, Tensor]
    meta: dict[str, str]

    def blocks(self) -> list[BlockKey]:
        """The blocks of the model, sorted by key."""
        return sorted({BlockKey.parse(name.rpartition("/")[0]) for name in self.tensors})

    def sha256(self) -> str:
        """Of the tensors and the slots: snapshots of one hash show the same model."""
        return tensors_sha256(self.tensors) + self.meta["slots"]


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot."""
    return Snapshot(*load_tensors(path))


class SnapshotModel:
    """A base model that loads snapshots, one after the other: their blocks are folded into its weights, or
    hooks compute them if the kind of adapter is not dense.

    `loaded.model` is changed in place. A `paper-literal` snapshot has only the own block, as the device's
    model has.
    """

    def __init__(self, loaded: LoadedModel, config: DeviceConfig) -> None:
        recipe = Recipe.make(loaded, config)
        self.model = loaded.model
        self._bases = Bases(recipe)
        self._layout = recipe.layout
        self._dense = DenseWeights(self.model, recipe.layout, recipe.scale)
        modules = {m.name: self.model.get_submodule(m.name) for m in recipe.modules}
        self._hooks = FactorHooks(modules, recipe.layout, recipe.scale)
        self._device = next(self.model.parameters()).device
        self._by_slot: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def load(self, path: Path) -> dict[str, str]:
        """Replace the blocks of the model by those of a snapshot; returns the snapshot's metadata."""
        snapshot = read_snapshot(path)
        self.place(snapshot)
        return snapshot.meta

    def place(self, snapshot: Snapshot) -> None:
        """Replace the blocks of the model by those of a snapshot."""
        tensors = {name: tensor.to(self._device) for name, tensor in snapshot.tensors.items()}
        slots: dict[str, int] = json.loads(snapshot.meta["slots"])
        blocks = [self._block(key, slots[str(key)], tensors) for key in snapshot.blocks()]
        if self._layout.kind.dense:
            self._dense.fold(blocks)
            return
        self._hooks.clear()
        for shape in self._layout.modules if blocks else ():
            self._hooks.add(shape, blocks)

    def _block(self, key: BlockKey, slot: int, tensors: Mapping[str, Tensor]) -> Block:
        if slot not in self._by_slot:
            self._by_slot[slot] = self._bases.block(slot, self._device), self._bases.ups(slot, self._device)
        bases, ups = self._by_slot[slot]
        data = {group: tensors[f"{key}/{group}"] for group in self._layout.groups}
        return Block(slot, data, bases, self._layout.kind, ups)
