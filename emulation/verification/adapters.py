"""An exported adapter: is each of its blocks one that the device has signed at the export?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from coordinator_free.identifiers import BlockKey
from emulation.analysis import forgotten_files
from emulation.verification.chain import Chain
from emulation.verification.findings import Findings
from peers.errors import InputError
from peers.storage import receipt_chain
from peers.storage.adapter_folder import BLOCKS, WEIGHTS
from peers.storage.receipt_chain import Receipt
from peers.unlearning import adapter_hashes
from peers.unlearning.adapter_hashes import AdapterHashes

MODEL_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz")  # files that can hold a block


def check_exported(adapter: Path, folder: Path, chains: Mapping[str, Chain], found: Findings) -> None:
    """An adapter in the folder of a run. Its name is that of its device."""
    where, own = str(adapter.relative_to(folder)), chains.get(adapter.name)
    if own is None:
        found.fault(where, "no device with receipts has exported it")
        return
    _check_copy(adapter, folder, own, where, found)
    check_content(adapter, own, (), where, found)


def _check_copy(adapter: Path, folder: Path, own: Chain, where: str, found: Findings) -> None:
    """The chain beside an adapter is that of its device, up to the last export."""
    copy, exports = adapter / receipt_chain.FILE, own.of_kind("exported")
    if not copy.exists():
        found.fault(where, f"has no {receipt_chain.FILE} beside it")
        return
    original = (folder / "devices" / own.device / receipt_chain.FILE).read_bytes()
    until = exports[-1].raw + b"\n" if exports else b""
    if not original.startswith(copy.read_bytes()) or not copy.read_bytes().endswith(until):
        found.fault(where, f"its {receipt_chain.FILE} is not the device's chain up to the last export")


def check_content(
    adapter: Path, chain: Chain, gone: Collection[BlockKey], where: str, found: Findings
) -> None:
    """The adapter is the one that the device exported last, or that one without some blocks."""
    for key in gone:
        if holds(adapter, key):
            found.fault(where, f"holds {key}, or it cannot be read")
    exports = chain.of_kind("exported")
    if not exports:
        found.fault(where, "the chain has no receipt of its export")
        return
    try:
        hashes = adapter_hashes.read(adapter)
    except InputError as error:
        found.fault(where, str(error))
        return
    _compare(hashes, exports[-1], where, found)
    for path in _strangers(adapter):
        found.fault(where, f"{path.relative_to(adapter)} is no file of an export, and may hold any block")


def holds(adapter: Path, key: BlockKey) -> bool:
    """Whether the list, the folder of contributions or the tensors of an adapter have a block."""
    return forgotten_files.adapter_holds(adapter, [key])


def _compare(hashes: AdapterHashes, export: Receipt, where: str, found: Findings) -> None:
    signed: Mapping[str, str] = export.fields["blocks"]
    places = {"": hashes.merged} | ({} if hashes.apart is None else {f"{BLOCKS}/: ": hashes.apart})
    for place, blocks in places.items():
        for key, digest in blocks.items():
            if signed.get(str(key)) != digest:
                found.fault(where, f"{place}the values under the name {key} are not those of the export")
    if hashes.adapter != hashes.whole:
        found.fault(where, f"{WEIGHTS} holds more than the listed blocks")
    for path in hashes.larger:
        found.fault(where, f"{BLOCKS}/{path.parent.name}/{WEIGHTS} holds more than its blocks")
    missing = sorted(set(signed) - set(map(str, hashes.merged)))
    if missing:
        found.note(where, f"{', '.join(missing)} was deleted from it after the export")
    elif hashes.adapter != export.fields["adapter_sha256"]:
        found.fault(where, "is not the adapter that the device exported")


def _strangers(adapter: Path) -> Iterator[Path]:
    """Files that can hold a block, and that no export has."""
    for path in model_files(adapter):
        place = path.relative_to(adapter).parts
        known = place == (WEIGHTS,) or (len(place) == 3 and place[0] == BLOCKS and place[2] == WEIGHTS)
        if not known:
            yield path


def model_files(folder: Path) -> list[Path]:
    """All files under a folder whose names are those of model files."""
    return sorted({path for pattern in MODEL_FILES for path in folder.rglob(pattern)})
