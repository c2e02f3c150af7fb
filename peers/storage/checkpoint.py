"""Checkpoints: the blocks of a device at the end of a run. A later run of the same devices begins with them.

OUT/checkpoint/<device>.safetensors has B of all held blocks as "<block>/<group>", and AdamW's state of the
own block as "moments/<group>/<name>", and the last closed round. The later run has its own members, versions
and links. A block is resumed if its device takes the same slot again in its first incarnation of that run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError, describe
from peers.lora.blocks import BlockSet
from peers.lora.fingerprint import Fingerprint
from peers.storage.adapter_folder import folder_of
from peers.storage.snapshots import write_snapshot
from peers.storage.tensor_file import load_tensors, read_meta

FOLDER = "checkpoint"
MOMENTS = "moments"
Moments = dict[str, dict[str, Tensor]]  # by group and name: exp_avg, exp_avg_sq, step


class Place(NamedTuple):
    """The owner of a block and its slot. They name the block from one run to the next."""

    device: str
    slot: int


@dataclass(eq=False)
class Checkpoint:
    """Blocks on one device. blocks: B by group, in the order of incarnations. moments: of the own block."""

    blocks: dict[Place, dict[str, Tensor]] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)

    @property
    def places(self) -> tuple[Place, ...]:
        """The blocks that are there, those of later incarnations last."""
        return tuple(self.blocks)

    def pop_block(self, place: Place) -> dict[str, Tensor]:
        """Remove and return B by group: nothing of a block may outlive its deletion."""
        return self.blocks.pop(place)

    def clear(self) -> None:
        """Forget everything when the first round begins."""
        self.blocks.clear()
        self.moments.clear()


def path_of(run: Path, device: str) -> Path:
    """The path of the device's file in the folder of a run."""
    return run.expanduser() / FOLDER / f"{folder_of(device)}.safetensors"


def save(path: Path, union: BlockSet, moments: Moments, fingerprint: Fingerprint, closed: int) -> None:
    """Write all blocks of `union`. No reader sees a partial file, also after a crash of the machine.

    closed: the last round that the device has closed; -1: none.
    """
    keys = union.keys()
    tensors = union.tensors(keys)
    for group, named in moments.items():
        tensors |= {f"{MOMENTS}/{group}/{name}": value.detach().cpu() for name, value in named.items()}
    slots = {str(key): union[key].slot for key in keys}
    meta = {"fingerprint": json.dumps(fingerprint.to_dict()), "round": str(closed)}
    write_snapshot(path, tensors, slots, meta, durable=True)


def closed_round(path: Path) -> int:
    """The last round that the device had closed. Raises InputError for a damaged or older file."""
    try:
        return int(read_meta(path)["round"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: is no checkpoint with a round ({describe(error)}); "
            "allowed: the files that `unweft run` wrote, or none for this device"
        ) from None


def forget_blocks(path: Path, gone: Collection[BlockKey]) -> None:
    """Rewrite a checkpoint without these blocks. Without the own block, its moments are left out too.

    Raises InputError for a damaged file.
    """
    try:
        tensors, meta = load_tensors(path)
        slots: dict[str, int] = json.loads(meta.pop("slots"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no checkpoint: {error}") from None
    named = {str(key) for key in gone}
    own = max((key for key in map(BlockKey.parse, slots) if folder_of(key.device) == path.stem), default=None)
    left_out = named | ({MOMENTS} if own in gone else set())
    kept = {
        name: value
        for name, value in tensors.items()
        if name.rpartition("/")[0] not in named and name.partition("/")[0] not in left_out
    }
    left = {key: slot for key, slot in slots.items() if key not in named}
    write_snapshot(path, kept, left, meta, durable=True)


def load(run: Path, device: str, fingerprint: Fingerprint) -> Checkpoint:
    """The blocks of `device` at the end of the run in the folder `run`; an empty checkpoint without a file.

    It has one block for each owner and slot. Raises InputError for a damaged file, or for one with another
    model or other bases.
    """
    path = path_of(run, device)
    if not path.exists():
        return Checkpoint()
    try:
        tensors, meta = load_tensors(path)
        there = Fingerprint.from_dict(json.loads(meta["fingerprint"]))
        found = _parse(tensors, json.loads(meta["slots"]))
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"checkpoint.resume: {path} is no checkpoint: {error}") from None
    difference = fingerprint.difference(there)
    if difference is not None:
        raise InputError(f"checkpoint.resume: {path} does not fit this run: {difference}")
    return found


def _parse(tensors: Mapping[str, Tensor], slots: Mapping[str, Any]) -> Checkpoint:
    found = Checkpoint()
    for key in sorted(map(BlockKey.parse, slots)):
        place, own = Place(key.device, int(slots[str(key)])), f"{key}/"
        found.blocks.pop(place, None)  # the later incarnation counts
        found.blocks[place] = {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == MOMENTS:
            group, _, what = rest.rpartition("/")
            found.moments.setdefault(group, {})[what] = value
    return found
