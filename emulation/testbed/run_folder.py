"""A run's folder that all devices of a service share: whoever comes first makes it ready for all.

What is made: the network key, unless there is one; the resolved scenario; the moment from which all count.
What a run left there of whose devices none lives any more goes aside, so that figures of two runs are never
mixed. Nobody is in charge of it: one lock on the folder lets one device at a time look and decide.
"""

from __future__ import annotations

import fcntl
import os
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
    """The scenario of the run that goes on in a folder, or of a new one (`make`), and an id in it.

    `keys_folder`: gets a network key if it has none. Raises InputError as `make` does, before anything is
    written; OSError where a folder cannot be written.
    """
    from emulation.scenario.loading import read

    run.mkdir(parents=True, exist_ok=True)
    with _alone(run):
        goes_on = (run / "scenario.toml").exists() and not _over(run)
        scenario = read(run / "scenario.toml") if goes_on else make()
        if (
            scenario.keys.enabled
            and keys_folder is not None
            and not (keys_folder / keys.NETWORK_FILE).exists()
        ):
            keys.generate(keys_folder)
        if not goes_on:
            _put_aside(run)
            begin(run, scenario)
        return scenario, id_leases.claim(run, scenario.devices.prefix, token)


def enter_as(run: Path, scenario: Scenario, name: str, token: str) -> Claim:
    """An id that the device was given, in a folder that may be its own; there it goes on after an end.

    Raises InputError if the id lives already.
    """
    run.mkdir(parents=True, exist_ok=True)
    with _alone(run):
        if not (run / "scenario.toml").exists():
            begin(run, scenario)
        return id_leases.claim_id(run, name, token)


def begin(run: Path, scenario: Scenario) -> None:
    """A new run in a folder: what all its devices read."""
    from emulation.scenario.loading import dump

    run.mkdir(parents=True, exist_ok=True)
    (run / "scenario.toml").write_text(dump(scenario), encoding="utf-8")
    epoch.write(run)


def _over(run: Path) -> bool:
    return id_leases.any_claimed(run) and not id_leases.any_alive(run)


def _put_aside(run: Path) -> None:
    """What is there goes to earlier/<when>."""
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
def _alone(run: Path) -> Iterator[None]:
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
