"""Delivers the leaves that nobody has confirmed to devices that run (docs/membership.md).

A device that leaves while it reaches nobody keeps its signed wish in its folder. The testbed can reach the
folders of all devices of a run. It copies such wishes into the folders of devices that run, and signals these
devices to read them.

`python -m emulation.testbed.leave_delivery DEVICE...` copies the pending wishes of these devices into the
folders of all devices. `unweft churn` runs this command in a container of the testbed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record
from emulation.analysis import records, tombstones
from peers.errors import InputError
from peers.storage import leave_wishes

AGAIN_S = 2.0  # pause between two deliveries of the same wishes


def pending(run: Path, gone: Iterable[str]) -> list[Record]:
    """The wishes of these devices that nobody has confirmed. Marks those that another device has recorded."""
    open_: list[Record] = []
    for device in sorted(gone):
        folder = run / "devices" / device
        wish = leave_wishes.read(folder)
        if wish.confirmed or not wish.records:
            continue
        if {*wish.blocks} <= _known(run, device):
            leave_wishes.write(folder, wish.records, confirmed=True)
        else:
            open_ += wish.records
    return open_


def _known(run: Path, owner: str) -> set[BlockKey]:
    """The tombstones that other devices than the owner have recorded."""
    return {
        block
        for path in (run / "devices").glob("*/events.jsonl")
        if path.parent.name != owner
        for block in tombstones.recorded(path.parent.name, records.read_lines(path))
    }


def deliver(run: Path, wishes: Collection[Record], to: Iterable[str]) -> None:
    """Copy wishes into the folders of devices. A signal then tells the devices to read them."""
    for device in to:
        leave_wishes.deliver(run / "devices" / device, wishes)


def main() -> int:
    """Deliver in the folder that UNWEFT_OUT names. Prints an error and returns 2 without such a leave."""
    run, gone = Path(os.environ["UNWEFT_OUT"]), sys.argv[1:]
    try:
        wishes = required(run, gone)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    deliver(run, wishes, (path.name for path in (run / "devices").glob("*") if path.name not in gone))
    return 0


def required(run: Path, gone: Iterable[str]) -> list[Record]:
    """The pending wishes of devices that do not run. Raises InputError for a device without one."""
    found = []
    for device in gone:
        wishes = pending(run, [device])
        if not wishes:
            raise InputError(
                f"{device}: does not run, and has no leave that nobody has confirmed; allowed: a device that "
                "runs, or one that left while it reached nobody"
            )
        found += wishes
    return found


if __name__ == "__main__":
    sys.exit(main())
