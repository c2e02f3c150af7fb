"""What one device learns: its blocks, its model, its data and its local steps (method 4).

Every method runs in one thread. Gradients reach the own block only, unless `isolation.leak` lets a share of them
reach the copies of other blocks.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from peers import export
from peers.adapter import Adapter
from peers.bases import Bases
from peers.blocks import BlockKey, Union
from peers.config import DeviceConfig
from peers.layout import build_layout
from peers.models import LoadedModel
from peers.tasks import Encoded, batch_generator, sample_batch

PAPER_LITERAL = "paper-literal"


class TrainResult(NamedTuple):
    """Mean loss of the local steps, their number, and their wall-clock seconds."""

    loss: float
    steps: int
    seconds: float


class Receipt(NamedTuple):
    """Hashes of all that the device holds, before and after a deletion."""

    sha256_before: str
    sha256_after: str


def build_union(loaded: LoadedModel, config: DeviceConfig) -> Union:
    """An empty union for a model. Raises InputError for impossible ranks or target modules."""
    layout = build_layout(loaded.model, loaded.target_modules, config.adapter.rank)
    adapter = config.adapter
    bases = Bases(layout, adapter.max_devices, config.seed, loaded.sha256, adapter.bases)
    return Union(bases, adapter.scale)


class Learner:
    """One device's blocks and model. Raises InputError when the configuration does not fit the model."""

    def __init__(self, loaded: LoadedModel, config: DeviceConfig, data: Encoded, device: str) -> None:
        self.config, self.device = config, device
        self.union = build_union(loaded, config)
        self.layout, self.groups = self.union.layout, self.union.layout.groups
        self._model_name, self._model_sha256 = loaded.name, loaded.sha256
        self._adapter = Adapter(loaded.model, self.union)
        self._data = data.to(loaded.model.device)
        self.own: BlockKey | None = None
        self._optimiser: torch.optim.AdamW | None = None
        self._foreign_moments: dict[tuple[BlockKey, str], torch.optim.AdamW] = {}
        self._round_start: dict[str, Tensor] = {}

    def fingerprint(self) -> dict[str, object]:
        """What two devices compare when they meet (method 2)."""
        return {**self.union.bases.fingerprint(), "scale": self.union.scale}

    def difference(self, theirs: dict[str, object]) -> str | None:
        if theirs.get("scale") != self.union.scale:
            return f"scale: {self.union.scale} here, {theirs.get('scale')} there"
        return self.union.bases.difference(theirs)

    # -- blocks ----------------------------------------------------------------------------------------
    def has(self, key: BlockKey) -> bool:
        return key in self.union.data

    def add_block(self, key: BlockKey, slot: int) -> None:
        self.union.add(key, slot)

    def set_own(self, key: BlockKey, slot: int, carry: BlockKey | None = None) -> None:
        """Start the own block on a slot at B = 0 (or with the values of `carry`), with fresh moments."""
        values = self.union.data.get(carry) if carry is not None else None
        self.union.add(key, slot)
        if values is not None:
            self.union.data[key] = {g: m.clone() for g, m in values.items()}
        self.own, self._round_start = key, {}
        train = self.config.train
        self._optimiser = torch.optim.AdamW(
            self._adapter.parameters(), lr=train.lr, weight_decay=train.weight_decay
        )
        self._adapter.load_own(key)

    def delete_block(self, key: BlockKey) -> Receipt:
        """Drop a block and every moment of it; nothing is asked of any history (method 3)."""
        before = self.union.sha256()
        self.union.delete(key)
        self._foreign_moments = {k: m for k, m in self._foreign_moments.items() if k[0] != key}
        self._adapter.unhook()
        return Receipt(before, self.union.sha256())

    def read(self, key: BlockKey, group: str) -> Tensor:
        """A copy of a (block, group) matrix, fp32 (rows_g, r_g)."""
        return self.union.data[key][group].clone()

    def write(self, key: BlockKey, group: str, matrix: Tensor) -> None:
        self.union.data[key][group].copy_(matrix)
        if key == self.own:
            self._adapter.load_own(key)

    def scale_own_move(self, omega: float) -> None:
        """B <- B_before + omega (B_after - B_before) over the last local steps (mode `newest`)."""
        assert self.own is not None
        for group, before in self._round_start.items():
            after = self.union.data[self.own][group]
            after.copy_(before + omega * (after - before))
        self._adapter.load_own(self.own)

    def norms(self) -> dict[str, dict[str, float]]:
        return self.union.norms()

    def sha256(self) -> str:
        return self.union.sha256()

    # -- local steps -----------------------------------------------------------------------------------
    def train(self, round_: int, steps: int, rehearse: bool) -> TrainResult:
        """`steps` AdamW steps on the own block. Raises RuntimeError when the loss is not finite."""
        assert self.own is not None and self._optimiser is not None
        started = time.perf_counter()
        self._round_start = {g: m.clone() for g, m in self.union.data[self.own].items()}
        foreign = [] if self.config.mixing.mode == PAPER_LITERAL else [k for k in self.union.data if k != self.own]
        rehearsal = self.config.train.rehearsal if rehearse else 0.0
        leak = self.config.isolation.leak
        if rehearsal or leak:
            self._adapter.apart(foreign, trainable=leak > 0)
        else:
            self._adapter.fold(foreign)
        total = sum(self._step(round_, step, foreign, rehearsal, leak) for step in range(steps))
        self._adapter.store_own(self.own)
        for (key, group), values in self._adapter.foreign.items():
            if leak:
                self.union.data[key][group].copy_(values.detach())
        return TrainResult(total / max(steps, 1), steps, time.perf_counter() - started)

    def _step(self, round_: int, step: int, foreign: list[BlockKey], rehearsal: float, leak: float) -> float:
        rng = batch_generator(self.config.seed, self.device, round_, step)
        batch = self._data.take(sample_batch(self._data, self.config.data.batch, rng))
        drop = bool(foreign) and rng.random() < rehearsal
        self._adapter.dropped = sorted(foreign)[int(rng.integers(len(foreign)))] if drop else None
        loss = self._adapter.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
        assert self._optimiser is not None
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        if leak:
            self._leak(leak)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"the loss of {self.device} in round {round_} is {value}; lower train.lr")
        return value

    def _leak(self, share: float) -> None:
        """Foreign copies move by `share` of an ordinary step; their moments are purged with the block."""
        for part, values in self._adapter.foreign.items():
            moments = self._foreign_moments.get(part)
            if moments is None:
                moments = torch.optim.AdamW([values], lr=self.config.train.lr * share, weight_decay=0.0)
                self._foreign_moments[part] = moments
            gradient, state = values.grad, moments.state
            old = moments.param_groups[0]["params"][0]
            if old is not values:  # a new round: the same moments go on with the new copy
                moments.param_groups[0]["params"] = [values]
                if old in state:
                    state[values] = state.pop(old)
            if gradient is not None:
                moments.step()
                values.grad = None

    # -- out ---------------------------------------------------------------------------------------------
    def snapshot(self, path: Path, meta: dict[str, str]) -> None:
        """All that is held, for the harness: the state at the last mixing, before the steps that run now."""
        tensors = {}
        for key, data in self.union.data.items():
            settled = self._round_start if key == self.own and self._round_start and _midway(meta) else data
            tensors |= {f"{key}/{g}": settled[g].contiguous().clone() for g in self.groups}
        slots = {str(k): s for k, s in self.union.slots.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, {**meta, "slots": json.dumps(slots), "own": str(self.own)})
        os.replace(temporary, path)

    def export(self, folder: Path) -> str:
        """Write adapters/<id>/ in PEFT's format; returns the adapter's hash."""
        return export.write(folder, self.union, self._model_name, self._model_sha256)


def _midway(meta: dict[str, str]) -> bool:
    return meta["tag"].startswith(("before:", "deleted:"))


class SnapshotModel:
    """The harness's model: a snapshot's blocks folded into the dense weights of the base."""

    def __init__(self, loaded: LoadedModel, config: DeviceConfig) -> None:
        self._union = build_union(loaded, config)
        self._adapter = Adapter(loaded.model, self._union)
        self._literal = config.mixing.mode == PAPER_LITERAL
        self.model = self._adapter.model
        self.model.eval()

    def load(self, path: Path) -> dict[str, str]:
        """Take a snapshot in; returns its metadata. In paper-literal only the own block is part of the model."""
        union = self._union
        union.data.clear()
        union.slots.clear()
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for text, slot in json.loads(meta["slots"]).items():
            device, _, incarnation = text.rpartition("@")
            key = BlockKey(device, int(incarnation))
            union.add(key, slot)
            union.data[key] = {g: tensors[f"{text}/{g}"] for g in union.layout.groups}
        keys = [k for k in union.data if not self._literal or str(k) == meta["own"]]
        self._adapter.fold(keys)
        return meta
