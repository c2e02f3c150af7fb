"""Addresses of devices that take a free port: each writes its own into a folder that all devices share.

A device writes its address, and then reads those of the others. Of two devices, the one that reads later sees
the other one, so that all devices are connected even if none waits for another.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from peers.runtime.spec import DeviceSpec

FOLDER = "addresses"  # in the folder of the run
SEEDS = 8  # addresses of other devices that a device takes


def folder_of(run: Path) -> Path:
    """The folder of the addresses of a run."""
    return run / FOLDER


def read(folder: Path) -> dict[str, str]:
    """The endpoint of each device that has written one, by device."""
    found = {}
    for path in sorted(folder.glob("*")):
        with suppress(OSError):  # its device has just ended
            found[path.name] = path.read_text(encoding="utf-8")
    return {device: endpoint for device, endpoint in found.items() if endpoint and device[0] != "."}


@contextmanager
def listed(spec: DeviceSpec, bound: str) -> Iterator[DeviceSpec]:
    """List a device under its real port while it lives. A device without an address book is not changed.

    `bound`: the endpoint that the links have bound.
    """
    if spec.addresses is None:
        yield spec
        return
    folder = Path(spec.addresses)
    host = spec.advertise.rpartition(":")[0]
    own = f"{host}:{bound.rpartition(':')[2]}"
    _write(folder, spec.id, own)
    try:
        yield replace(spec, advertise=own)
    finally:
        with suppress(OSError):
            (folder / spec.id).unlink()


def with_seeds(spec: DeviceSpec) -> DeviceSpec:
    """The spec with the addresses of other devices that are listed now. Call it as late as possible."""
    if spec.addresses is None:
        return spec
    known = read(Path(spec.addresses))
    others = [endpoint for device, endpoint in known.items() if device != spec.id]
    return replace(spec, seeds=(*spec.seeds, *_some(others, spec.id)))


def _some(others: list[str], device: str) -> list[str]:
    """At most SEEDS of the others. The first is among them: by it, all devices are connected."""
    if len(others) <= SEEDS:
        return others
    return [others[0], *random.Random(device).sample(others[1:], SEEDS - 1)]


def _write(folder: Path, device: str, endpoint: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{device}.tmp"
    unfinished.write_text(endpoint, encoding="utf-8")
    unfinished.replace(folder / device)
