"""What a device holds at the end of a run, as a file that another run of the same devices begins with.

OUT/checkpoint/<device>.safetensors: "<block>/<group>" -> B of all blocks as this device holds them, and
"moments/<group>/<name>" -> what AdamW keeps of the own block. A run that begins with it has rounds, members,
versions and links of its own. A block goes on if its device takes its slot again in the first incarnation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.lora.blocks import BlockSet
from peers.lora.fingerprint import Fingerprint
from peers.storage.adapter_folder import folder_of
from peers.storage.snapshots import write_snapshot

FOLDER = "checkpoint"
MOMENTS = "moments"
Moments = dict[str, dict[str, Tensor]]  # by group and name: exp_avg, exp_avg_sq, step


@dataclass(eq=False)
class Checkpoint:
    """What one device held. blocks: B by group, by device. slots: by device. moments: of the own block."""

    blocks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)

    def pop_block(self, device: str) -> dict[str, Tensor]:
        """Remove and return B by group: nothing of a block may outlive its deletion."""
        return self.blocks.pop(device)

    def clear(self) -> None:
        """Forget everything when the first round begins."""
        self.blocks.clear()
        self.moments.clear()


def path_of(run: Path, device: str) -> Path:
    """Of the device's file in the folder of a run."""
    return run.expanduser() / FOLDER / f"{folder_of(device)}.safetensors"


def save(path: Path, union: BlockSet, moments: Moments, fingerprint: Fingerprint) -> None:
    """Write all blocks of `union`, whole or not at all."""
    keys = union.keys()
    tensors = union.tensors(keys)
    for group, named in moments.items():
        tensors |= {f"{MOMENTS}/{group}/{name}": value.detach().cpu() for name, value in named.items()}
    slots = {str(key): union[key].slot for key in keys}
    write_snapshot(path, tensors, slots, {"fingerprint": json.dumps(fingerprint.to_dict())})


def load(run: Path, device: str, fingerprint: Fingerprint) -> Checkpoint:
    """What `device` held at the end of the run in the folder `run`; nothing if it was not there.

    Of a device's blocks the last incarnation's. Raises InputError for a file that is none, or was written
    with another model or other bases.
    """
    path = path_of(run, device)
    if not path.exists():
        return Checkpoint()
    try:
        with safe_open(path, framework="pt") as file:
            meta: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        there = Fingerprint.from_dict(json.loads(meta["fingerprint"]))
        found = _sorted_out(tensors, json.loads(meta["slots"]))
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"checkpoint.resume: {path} is no checkpoint: {error}") from None
    difference = fingerprint.difference(there)
    if difference is not None:
        raise InputError(f"checkpoint.resume: {path} does not fit this run: {difference}")
    return found


def _sorted_out(tensors: Mapping[str, Tensor], slots: Mapping[str, Any]) -> Checkpoint:
    found = Checkpoint()
    for key in sorted(map(BlockKey.parse, slots)):  # later incarnations replace earlier ones
        found.slots[key.device] = int(slots[str(key)])
        own = f"{key}/"
        found.blocks[key.device] = {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == MOMENTS:
            group, _, what = rest.rpartition("/")
            found.moments.setdefault(group, {})[what] = value
    return found
