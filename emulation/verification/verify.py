"""`verify` checks a run's or an exported adapter's receipts offline (docs/receipts.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.slots import EVERYBODY
from emulation.analysis import records, tombstones
from emulation.analysis.records import RunRecords
from emulation.verification import adapters, chain, cross_checks, held
from emulation.verification.chain import LEAVE, Chain
from emulation.verification.cross_checks import Facts
from emulation.verification.findings import Findings
from peers.errors import InputError, describe
from peers.storage import receipt_chain
from peers.storage.adapter_folder import ABOUT
from transport.security.keys import load_signers

ALLOWED = "allowed: a folder that `unweft run` wrote, or an adapter in its folder adapters/"
WITHOUT = "allowed: a run with membership.receipts = true, or an adapter of one"
FINAL = (LEAVE, "crash")  # reasons of deletions that a reader asks for; the others end an incarnation only


@dataclass(frozen=True)
class DeviceRow:
    """One chain. key: that signed its last receipt, in hex. head: hash of the last line. faults: number."""

    device: str
    receipts: int
    deletions: int
    key: str
    head: str
    faults: int


@dataclass(frozen=True)
class BlockRow:
    """One deleted block. held_by: files, and devices that held it at their end.

    deleted_by: devices with a signed deletion. confirmed_by: devices that confirmed that they hold no copy.
    """

    block: str
    reason: str
    deleted_by: tuple[str, ...]
    confirmed_by: tuple[str, ...]
    held_by: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The result. kind: "run" or "adapter"."""

    kind: str
    devices: tuple[DeviceRow, ...]
    blocks: tuple[BlockRow, ...]
    findings: Findings

    @property
    def holds(self) -> bool:
        return not self.findings.faults

    def to_dict(self) -> dict[str, Any]:
        """For a file of JSON."""
        found = {
            "faults": [finding._asdict() for finding in self.findings.faults],
            "notes": [finding._asdict() for finding in self.findings.notes],
        }
        rows = {
            "devices": [asdict(row) for row in self.devices],
            "blocks": [asdict(row) for row in self.blocks],
        }
        return {"kind": self.kind, "holds": self.holds, **rows, **found}


def verify(folder: Path, keys: Path | None = None) -> Verdict:
    """Check the folder of a run, or that of an exported adapter. Writes nothing.

    keys: a folder with an allow-list (`unweft keys new --devices`), whose keys have to be those of the
    chains. Raises InputError if the folder is neither, if it has no receipts, or if the list cannot be read.
    """
    listed = None if keys is None else _signers(keys)
    if (folder / ABOUT).is_file():
        return _verify_adapter(folder, listed)
    if not (folder / "devices").is_dir():
        seeds = "; it has one run for each seed" if (folder / "seeds.json").exists() else ""
        raise InputError(f"{folder}: is neither a run nor an exported adapter{seeds}; {ALLOWED}")
    return _verify_run(folder, listed)


def _signers(folder: Path) -> Mapping[str, bytes]:
    try:
        return load_signers(folder)
    except ValueError as error:
        raise InputError(
            f"--keys: {error}; allowed: a folder that `unweft keys new DIR --devices …` wrote"
        ) from None


def _verify_adapter(folder: Path, listed: Mapping[str, bytes] | None) -> Verdict:
    path, found = folder / receipt_chain.FILE, Findings()
    if not path.is_file():
        raise InputError(f"{folder}: holds no receipts (no {receipt_chain.FILE}); {WITHOUT}")
    own = chain.read(path, "", receipt_chain.FILE, found)
    if not own.receipts or own.receipts[-1].kind != "exported":
        found.fault(receipt_chain.FILE, "does not end with the export of the adapter: lines are missing")
    _check_listed([own], listed, found)
    gone = _forgotten([own])
    adapters.check_content(folder, own, gone, "adapter", found)
    holding = {key: ["adapter"] if adapters.holds(folder, key) else [] for key in gone}
    rows = (_device_row(own, len(found.faults)),)
    return Verdict("adapter", rows, _block_rows([own], gone, holding), found)


def _verify_run(folder: Path, listed: Mapping[str, bytes] | None) -> Verdict:
    run, facts, left = _load(folder)
    found = Findings()
    paths = {path.parent.name: path for path in folder.glob(f"devices/*/{receipt_chain.FILE}")}
    if not paths:
        raise InputError(f"{folder}: holds no receipts; {WITHOUT}")
    chains = {
        device: chain.read(paths[device], device, cross_checks.where(device), found)
        for device in records.in_order(set(paths))
    }
    cross_checks.check(run, facts, chains, found)
    _check_listed(chains.values(), listed, found)
    gone = sorted({*_forgotten(chains.values()), *left})
    holding = held.check_files(folder, gone, chains.values(), found)
    for about in sorted(folder.glob(f"adapters/*/{ABOUT}")):
        adapters.check_exported(about.parent, folder, chains, found)
    for key, devices in cross_checks.check_survivors(chains, gone, found).items():
        holding[key] += devices
    rows = tuple(_device_row(own, found.about(device)) for device, own in chains.items())
    return Verdict("run", rows, _block_rows([*chains.values()], gone, holding), found)


def _load(folder: Path) -> tuple[RunRecords, Facts, list[BlockKey]]:
    """The records of a run, and the blocks whose owners left, as these say. Raises InputError."""
    try:
        run = records.load(folder)
        return run, Facts.of(run), tombstones.find(run)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder}: a record of the run is damaged ({describe(error)}); "
            "allowed: the records that `unweft run` and its devices wrote"
        ) from None


def _check_listed(chains: Iterable[Chain], listed: Mapping[str, bytes] | None, found: Findings) -> None:
    """The keys of the chains are those of the allow-list. Without one, nothing binds a key to a device."""
    for own in chains if listed is not None else ():
        key = (listed or {}).get(own.device, b"").hex()
        if any(used != key for used, _ in own.keys):
            found.fault(own.device, "its chain is not signed with the key that the allow-list names")


def _forgotten(chains: Iterable[Chain]) -> list[BlockKey]:
    """The blocks whose owners left, as the chains say. Other deletions may be undone by a return."""
    quoted = {r.block for own in chains for r in own.deletions() if chain.quotes_leave(r)}
    return sorted(quoted)


def _device_row(own: Chain, faults: int) -> DeviceRow:
    key = own.receipts[-1].public if own.receipts else ""
    return DeviceRow(own.device, own.lines, len(own.deletions()), key, own.head, faults)


def _block_rows(
    chains: Collection[Chain], gone: Collection[BlockKey], holding: Mapping[BlockKey, list[str]]
) -> tuple[BlockRow, ...]:
    deleted = {r.block for own in chains for r in own.deletions() if r.fields["reason"] in FINAL}
    return tuple(
        _block_row(key, chains, key in gone, holding.get(key, [])) for key in sorted({*deleted, *gone})
    )


def _block_row(key: BlockKey, chains: Collection[Chain], is_gone: bool, holding: Iterable[str]) -> BlockRow:
    heard = {r.fields["who"] for own in chains for r in own.of_kind("confirmed") if r.block == key}
    return BlockRow(
        block=str(key),
        reason=LEAVE if is_gone else "crash",
        deleted_by=tuple(own.device for own in chains if own.deletions(key)),
        confirmed_by=tuple(records.in_order(heard - {EVERYBODY})),
        held_by=tuple(holding),
    )
