"""No file of a run holds a tombstoned block when the run is over.

Devices correct their own files while they live. A device that retired, left or crashed earlier cannot. So the
end of a run reads every file that can hold a block, and corrects it: a saved adapter by the deletion of
`unweft forget`, in place; a snapshot or a temporary file by its removal; a checkpoint by rewriting it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator_free.identifiers import BlockKey
from emulation.analysis import records, tombstones
from emulation.analysis.records import KEPT_SNAPSHOTS, Record, RunRecords
from peers.errors import InputError

FILE = "forgotten.json"  # the files of the run that were corrected
ADAPTERS, CHECKPOINTS = "adapters", "checkpoint"


@dataclass
class Found:
    """The files that were read. `holding`: those that still hold a tombstoned block."""

    checked: int = 0
    holding: list[Path] = field(default_factory=list)

    def add(self, path: Path, holds: bool) -> None:
        self.checked += 1
        if holds:
            self.holding.append(path)


def report(run: RunRecords) -> Record:
    """The part `forgotten` of summary.json."""
    gone = tombstones.find(run)
    found = check(run.folder, gone)
    return {
        "tombstones": [str(block) for block in gone],
        "files_checked": found.checked,
        "corrected": _read_corrected(run.folder),
        "holding": _names(run.folder, found.holding),
    }


def check(folder: Path, gone: Collection[BlockKey]) -> Found:
    """Read every file under the folder of a run that can hold a block. Without tombstones no file does."""
    found = Found()
    for path in adapters(folder):
        found.add(path, bool(gone) and (is_unfinished(path) or adapter_holds(path, gone)))
    for path in tensor_files(folder):
        found.add(path, bool(gone) and tensors_hold(path, gone))
    for path in _temporary_files(folder):
        found.add(path, bool(gone))
    return found


def correct(folder: Path, keep_snapshots: bool = False, also: Collection[BlockKey] = ()) -> None:
    """Delete tombstoned blocks from the files of a run that is over, and list these files in FILE.

    Files that a killed device had not finished to write are removed. A file that cannot be corrected stays,
    and `check` finds it. keep_snapshots: leave the snapshots that were kept for an experiment to the
    experiment, which measures them and then removes them. also: further blocks to delete.
    """
    gone = {*tombstones.find(records.load(folder)), *also}
    if gone:
        _correct_all(folder, gone, keep_snapshots)
    for path in _temporary_files(folder, "*.tmp"):
        path.unlink(missing_ok=True)


def _correct_all(folder: Path, gone: Collection[BlockKey], keep_snapshots: bool) -> None:
    kept = folder / KEPT_SNAPSHOTS if keep_snapshots else None
    holding = [path for path in check(folder, gone).holding if kept is None or kept not in path.parents]
    corrected = [path for path in holding if _correct(path, frozenset(gone))]
    if corrected:
        named = [*_read_corrected(folder), *_names(folder, corrected)]
        (folder / FILE).write_text(json.dumps(sorted(set(named)), indent=1) + "\n", encoding="utf-8")


# -- the files -------------------------------------------------------------------------------------------
def adapters(folder: Path) -> list[Path]:
    """The saved adapters, with those that a device had not finished to write: beside them or inside."""
    found = [*(folder / ADAPTERS).glob("*"), *(folder / ADAPTERS).glob("*/.*")]
    return sorted(path for path in found if path.is_dir())


def is_unfinished(path: Path) -> bool:
    """Whether a killed device had not finished this adapter."""
    return path.name.startswith(".")


def tensor_files(folder: Path) -> Iterator[Path]:
    """Snapshots and checkpoints. The name of a tensor says its block."""
    for pattern in (
        "devices/*/snapshots/*.safetensors",
        f"{KEPT_SNAPSHOTS}/*/*.safetensors",
        f"{CHECKPOINTS}/*.safetensors",
    ):
        yield from sorted(folder.glob(pattern))


def _temporary_files(folder: Path, pattern: str = "*.safetensors.tmp") -> Iterator[Path]:
    """The files that a killed device had not finished to write; by default those that can hold a block."""
    for place in ("devices", KEPT_SNAPSHOTS, CHECKPOINTS):
        yield from sorted((folder / place).rglob(pattern))


def _names(folder: Path, paths: Collection[Path]) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def _read_corrected(folder: Path) -> list[str]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


# -- what a file holds -----------------------------------------------------------------------------------
def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its tensors and its metadata. Raises ValueError or OSError."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is shorter than its header says")
        found = json.loads(file.read(size))
    if not isinstance(found, dict):
        raise ValueError("its header is no object")
    return found


def tensors_hold(path: Path, gone: Collection[BlockKey]) -> bool:
    """Whether a snapshot or a checkpoint names a tombstoned block. A damaged file may hold any block."""
    try:
        header = _header(path)
        named = {name.rpartition("/")[0] for name in header if name != "__metadata__"}
        named |= set(json.loads(header["__metadata__"]["slots"]))
    except (ValueError, OSError, KeyError, TypeError):
        return True
    return not named.isdisjoint(map(str, gone))


def adapter_holds(path: Path, gone: Collection[BlockKey]) -> bool:
    """Whether the list, the folder of contributions or the tensors of an adapter have a tombstoned block."""
    from peers.storage import adapter_folder as saved  # here, since it imports torch

    try:
        about = json.loads((path / saved.ABOUT).read_text(encoding="utf-8"))
        listed = [BlockKey(b["device"], b["incarnation"]) for b in about["blocks"]]
        if not set(listed).isdisjoint(gone):
            return True
        modules = {module["name"]: int(module["rank"]) for module in about["recipe"]["modules"]}
        by_folder = Counter(saved.folder_of(key.device) for key in listed)
        more = _has_more(path / saved.WEIGHTS, modules, len(listed))
        for child in (path / saved.BLOCKS).glob("*"):
            more |= not by_folder[child.name]
            more |= _has_more(child / saved.WEIGHTS, modules, by_folder[child.name])
    except (ValueError, OSError, KeyError, TypeError):
        return any(True for _ in _finished_tensors(path))  # it may hold any block
    return more


def _finished_tensors(path: Path) -> Iterator[Path]:
    """The tensor files of an adapter, without those of an unfinished one inside, which is read on its own."""
    for found in path.rglob("*.safetensors"):
        if not any(part.startswith(".") for part in found.relative_to(path).parts):
            yield found


def _has_more(path: Path, ranks: dict[str, int], blocks: int) -> bool:
    """Whether the tensors of an adapter have more columns than the blocks that are listed."""
    shapes = _header(path)
    names = {name: f"base_model.model.{name}.lora_A.weight" for name in ranks}
    return any(int(shapes[names[name]]["shape"][0]) > max(1, blocks * rank) for name, rank in ranks.items())


# -- corrections -----------------------------------------------------------------------------------------
def _correct(path: Path, gone: frozenset[BlockKey]) -> bool:
    """Make a file hold no tombstoned block; returns whether that was done."""
    from peers.storage import checkpoint
    from peers.storage.adapter_folder import ABOUT
    from peers.unlearning.forget import forget_blocks

    try:
        if path.is_dir() and is_unfinished(path):
            shutil.rmtree(path)
        elif path.is_dir() and not (path / ABOUT).exists():  # a first export that was killed near its end
            for child in list(path.iterdir()):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        elif path.is_dir():
            forget_blocks(path, gone)
        elif path.parent.name == CHECKPOINTS and path.suffix == ".safetensors":
            checkpoint.forget_blocks(path, gone)
        else:
            path.unlink()
    except (InputError, OSError):
        return False
    return True
