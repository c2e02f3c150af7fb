"""The files of a run that still hold a forgotten block: by name, by value, or because nobody knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from coordinator_free.identifiers import BlockKey
from emulation.analysis import forgotten_files
from emulation.verification.adapters import holds, model_files
from emulation.verification.chain import Chain
from emulation.verification.findings import Findings
from peers.storage.adapter_folder import ABOUT
from peers.storage.tensor_file import load_tensors, values_sha256

Held = dict[BlockKey, list[str]]  # by forgotten block: the files that hold it


def check_files(folder: Path, gone: Iterable[BlockKey], chains: Iterable[Chain], found: Findings) -> Held:
    """Search all files of a run for forgotten blocks."""
    held: Held = {key: [] for key in gone}
    for key, files in held.items():
        for path in forgotten_files.check(folder, [key]).holding:
            files.append(_name(path, folder))
            found.fault(files[-1], f"holds {key}, or it cannot be read")
    _check_values(folder, held, _signed_values(chains, held), found)
    if held:
        _check_other_places(folder, held, found)
    return held


def _signed_values(chains: Iterable[Chain], gone: Iterable[BlockKey]) -> dict[str, BlockKey]:
    """SHA-256 of the values of forgotten blocks, as each device held them when it deleted them."""
    wanted = set(gone)
    receipts = [r for chain in chains for r in chain.deletions() if r.block in wanted]
    return {digest: r.block for r in receipts for digest in r.fields["values"].values()}


def _check_values(folder: Path, held: Held, signed: Mapping[str, BlockKey], found: Findings) -> None:
    """Look for the values of forgotten blocks under other names, in snapshots and checkpoints."""
    for path in forgotten_files.tensor_files(folder) if signed else ():
        where = _name(path, folder)
        try:
            tensors, _ = load_tensors(path)
        except (SafetensorError, OSError):
            continue  # the search by name has found it
        for name, tensor in tensors.items():
            key = signed.get(values_sha256(tensor))
            if key is not None and not name.startswith(f"{key}/"):
                held[key].append(where)
                found.fault(where, f"holds values of {key} under the name {name}")


def _check_other_places(folder: Path, held: Held, found: Findings) -> None:
    """Adapters and model files in places where no run writes any."""
    adapters = {path.parent for path in folder.rglob(ABOUT)}
    for adapter in sorted(adapters - set(forgotten_files.adapters(folder))):
        for key in held:
            if holds(adapter, key):
                held[key].append(_name(adapter, folder))
                found.fault(_name(adapter, folder), f"holds {key}, or it cannot be read")
    known = {*forgotten_files.tensor_files(folder)}
    for path in model_files(folder):
        if path not in known and adapters.isdisjoint(path.parents):
            found.fault(_name(path, folder), "is no file of a run, and may hold any block")


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))
