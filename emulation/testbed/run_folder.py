"""A run's folder that all devices of a service share. The first device makes it ready for all others.

The first device writes the network key (unless there is one), the resolved scenario and the start time. If
the folder holds an earlier run without live devices, that run is moved into `earlier/`, so that the records
of two runs are never mixed. No coordinator is needed: a lock on the folder lets in one device at a time.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from emulation.testbed import epoch, id_leases
from emulation.testbed.id_leases import Claim
from transport.security import keys

if TYPE_CHECKING:
    from emulation.scenario.schema import Scenario

ASIDE, LOCK = "earlier", ".lock"


def enter(
    run: Path, keys_folder: Path | None, make: Callable[[], Scenario], token: str
) -> tuple[Scenario, Claim]:
    """Enter the run in a folder, or begin a new one with the scenario from `make`; returns scenario and id.

    A network key is made in `keys_folder` if it has none. Raises InputError from `make` before anything is
    written, and OSError if a folder cannot be written.
    """
    from emulation.scenario.loading import read

    run.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        goes_on = (run / "scenario.toml").exists() and not _has_ended(run)
        scenario = read(run / "scenario.toml") if goes_on else make()
        if (
            scenario.keys.enabled
            and keys_folder is not None
            and not (keys_folder / keys.NETWORK_FILE).exists()
        ):
            keys.generate(keys_folder)
        if not goes_on:
            _move_aside(run)
            begin(run, scenario, secrets.token_hex(8))
        return scenario, id_leases.claim(run, scenario.devices.prefix, token)


def enter_as(run: Path, scenario: Scenario, name: str, token: str) -> Claim:
    """Enter the run in a folder with a given id. The folder may belong to this device alone.

    A run whose devices have all ended goes on. This gives the run no name, since the folders of other devices
    would give it others. Raises InputError if a live device has the id.
    """
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        if not (run / "scenario.toml").exists():
            begin(run, scenario)
        return id_leases.claim_id(run, name, token)


def begin(run: Path, scenario: Scenario, name: str = "") -> None:
    """Write the files of a new run that all its devices read. `name`: of the run (epoch.py)."""
    from emulation.scenario.loading import dump

    run.mkdir(parents=True, exist_ok=True)
    (run / "scenario.toml").write_text(dump(scenario), encoding="utf-8")
    epoch.write(run, name)


def _has_ended(run: Path) -> bool:
    return id_leases.any_claimed(run) and not id_leases.any_alive(run)


def _move_aside(run: Path) -> None:
    """Move all files of an earlier run to earlier/<time>."""
    found = [path for path in run.iterdir() if path.name not in (ASIDE, LOCK)]
    if not found:
        return
    stamp = run / ASIDE / time.strftime("%Y%m%d-%H%M%S")
    names = (stamp if number == 0 else stamp.with_name(f"{stamp.name}-{number}") for number in count())
    target = next(name for name in names if not name.exists())
    target.mkdir(parents=True)
    for path in found:
        path.rename(target / path.name)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
