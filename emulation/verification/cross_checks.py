"""The chains of a run against each other, and against the other records of the run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import Record, RunRecords
from emulation.verification.chain import Chain, quotes_leave
from emulation.verification.findings import Findings
from peers.storage import leave_wishes, receipt_chain
from peers.storage.receipt_chain import Receipt

Chains = Mapping[str, Chain]  # by device
Deletions = dict[tuple[int, BlockKey], Record]  # lines of events.jsonl, by life and block


class Facts(NamedTuple):
    """The other records of a run, by device.

    deletions: lines of events.jsonl. finished: the lives that ended in order.
    """

    deletions: dict[str, Deletions]
    finished: dict[str, set[int]]

    @classmethod
    def of(cls, run: RunRecords) -> Facts:
        """Raises KeyError, TypeError, ValueError or AttributeError for a damaged record."""
        deletions = {device: _deletions(events) for device, events in run.events.items()}
        return cls(deletions, {device: _finished(run, device) for device in run.devices})


def _deletions(events: Iterable[Record]) -> Deletions:
    lines = [e for e in events if e["event"] == "deleted"]
    return {(int(e["life"]), BlockKey(str(e["peer"]), int(e["incarnation"]))): e for e in lines}


def _finished(run: RunRecords, device: str) -> set[int]:
    """The lives that say so, and the last one if the launcher saw its exit status 0."""
    events = run.events.get(device, [])
    last = max((int(e["life"]) for e in events), default=-1)
    names = {e["event"] for e in events if int(e["life"]) == last}
    seen = run.run.get("devices", {}).get(device, {}).get("exit") == 0 and "started" in names
    return {int(e["life"]) for e in events if e["event"] == "finished"} | ({last} if seen else set())


def check(run: RunRecords, facts: Facts, chains: Chains, found: Findings) -> None:
    """Everything but the files that can hold a block."""
    for device in run.devices:
        if device not in chains:
            found.fault(where(device), "is missing, and the records of the run name the device")
    finished = {device: facts.finished.get(device, set()) for device in chains}
    signed = {device: Signed.by(chain, finished[device]) for device, chain in chains.items()}
    for device, chain in chains.items():
        _check_ends(chain, finished[device], found)
        _check_events(chain, facts.deletions.get(device, {}), finished[device], found)
        _check_keys(chain, chains, set(run.devices), found)
        _check_confirmations(chain, signed, found)
        _check_wishes(chain, chains, run.folder, found)


def where(device: str) -> str:
    """The place of a device's chain in the folder of a run."""
    return f"devices/{device}/{receipt_chain.FILE}"


def _check_ends(chain: Chain, finished: set[int], found: Findings) -> None:
    """A life that ended in order has an `end`. One that was killed has none."""
    for life in sorted({r.life for r in chain.receipts} | finished):
        if life in finished and life not in chain.ended_lives:
            found.fault(where(chain.device), f"life {life} has no end: the last lines were removed")
        elif life not in chain.ended_lives:
            found.note(where(chain.device), f"life {life} has no end: it was killed, or it still runs")
        elif life not in finished:
            found.note(where(chain.device), f"life {life} has an end, and events.jsonl has none")


def _check_events(chain: Chain, recorded: Deletions, finished: set[int], found: Findings) -> None:
    """Each deletion that events.jsonl has is in the chain, with the same hashes, and the other way round.

    A process that is killed may have written only one of the two.
    """
    signed = {(r.life, r.block): r for r in chain.deletions()}
    for life, block in sorted(recorded.keys() ^ signed.keys()):
        lacks = "no receipt" if (life, block) in recorded else "no line in events.jsonl"
        found.add(where(chain.device), f"life {life} deleted {block}, with {lacks}", life in finished)
    for key in sorted(recorded.keys() & signed.keys()):
        names = "sha256_before", "sha256_after"
        if any(recorded[key].get(name) != signed[key].fields[name] for name in names):
            found.fault(where(chain.device), f"the deletion of {key[1]} has other hashes in events.jsonl")


def _check_keys(chain: Chain, chains: Chains, devices: Collection[str], found: Findings) -> None:
    """The keys that a chain names for other devices are the keys that signed their chains."""
    for device, key, run in sorted(_named_keys(chain)):
        if device in chains and (key, run) not in chains[device].keys:
            found.fault(where(device), f"is not signed with the key that {chain.device} names for {device}")
        elif device not in chains and device not in devices:
            found.note(where(device), f"is not here, and {chain.device} names the device as a member")
    runs = {run for other in chains.values() if other is not chain for _, run in other.keys}
    for run in sorted({run for _, run in chain.keys} - runs) if len(chains) > 1 else ():
        found.note(where(chain.device), f"no other chain has receipts of the run {run!r}")


def _named_keys(chain: Chain) -> set[tuple[str, str, str]]:
    receipts = chain.of_kind("deleted", "exported", "end")
    named = {(d, key, r.run) for r in receipts for d, key in r.fields["members"].items()}
    return {(device, key, run) for device, key, run in named if device != chain.device}


def _check_confirmations(chain: Chain, signed: Mapping[str, Signed], found: Findings) -> None:
    """A device has signed each confirmation that others heard of it."""
    for receipt in chain.of_kind("confirmed"):
        who = receipt.fields["who"]
        if who in signed and receipt.block not in signed[who].confirmed:
            text = f"has no confirmation for {receipt.block}, and {chain.device} heard one"
            found.add(where(who), text, signed[who].all_ended)


class Signed(NamedTuple):
    """confirmed: the blocks of which a device has signed that it holds no copy.

    all_ended: no life of the device was killed. A process that is killed may have told others first.
    """

    confirmed: set[BlockKey]
    all_ended: bool

    @classmethod
    def by(cls, chain: Chain, finished: set[int]) -> Signed:
        own = {r.block for r in chain.of_kind("confirmed") if r.fields["who"] == chain.device}
        return cls(own, {r.life for r in chain.receipts} <= finished)


def _check_wishes(chain: Chain, chains: Chains, folder: Path, found: Findings) -> None:
    """The leaves that a chain quotes are signed with the key of the owner, as the owner's folder says."""
    for receipt in _leaves(chain):
        owner, quoted = receipt.block.device, receipt.fields["leave"]["public"]
        wish = leave_wishes.read(folder / "devices" / owner)
        saved = {record.public.hex() for record in wish.records if record.key == receipt.block}
        signed = {key for key, _ in chains[owner].keys} if owner in chains else set()
        for keys, place in ((saved, leave_wishes.FILE), (signed, "chain")):
            if keys and quoted not in keys:
                text = f"quotes a leave of {receipt.block} with another key than that of the owner's {place}"
                found.fault(where(chain.device), text)


def _leaves(chain: Chain) -> list[Receipt]:
    return [r for r in chain.deletions() if quotes_leave(r)]


def check_survivors(chains: Chains, gone: Collection[BlockKey], found: Findings) -> dict[BlockKey, list[str]]:
    """By forgotten block: the devices that still held it at their end, after another one had deleted it."""
    held: dict[BlockKey, list[str]] = {key: [] for key in gone}
    for key in gone:
        first_s = min((r.t_s for c in chains.values() for r in c.deletions(key)), default=float("inf"))
        for device, chain in chains.items():
            last = chain.of_kind("end", "exported")[-1:]
            if device == key.device or not last or str(key) not in last[0].fields["blocks"]:
                continue
            if last[0].t_s > first_s:
                held[key].append(device)
                found.fault(where(device), f"the device held {key} at its end, and has not deleted it")
            elif chain.of_kind("exported"):  # its adapter outlives it
                found.note(where(device), f"the device ended before the leave of {key.device}, with {key}")
    return held
