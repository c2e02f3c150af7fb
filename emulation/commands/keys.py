"""`unweft keys`: make the keys of a testbed in a folder, and rotate them (docs/security.md)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from coordinator_free.ranges import DEVICE_ID_ALLOWED, valid_device_id
from peers.errors import InputError
from transport.security import keys
from transport.security.keys import NetworkKeys

if TYPE_CHECKING:
    from peers.config import KeysConfig

app = typer.Typer(
    help="Keys: which devices may talk to the devices of a testbed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the keys.")]


class Step(StrEnum):
    """A step of a rotation, in order. All devices do one step before the next one."""

    install = "install"
    use = "use"
    remove = "remove"


@app.command(epilog="Example: unweft keys new testbed-keys --devices d0,d1,d2")
def new(
    folder: Folder,
    devices: Annotated[
        str,
        typer.Option(help="Ids, with commas: make a key pair for each, and an allow-list of them."),
    ] = "",
) -> None:
    """Make a network key in DIR, which is new or empty. Only the owner can read it."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: is not an empty folder; allowed: a new or empty one")
    ids = [name.strip() for name in devices.split(",") if name.strip()]
    for name in ids:
        if not valid_device_id(name):
            raise InputError(f"--devices: {name!r} is no device id; allowed: {DEVICE_ID_ALLOWED}")
    try:
        made = keys.generate(folder, ids)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    _say(f"network key {made.label()} in {folder}, for " + (", ".join(ids) or "any device that has it"))


@app.command(epilog="Example: unweft keys rotate testbed-keys install")
def rotate(
    folder: Folder,
    step: Annotated[
        Step,
        typer.Argument(
            metavar="STEP",
            help="install, use, remove, in this order; all devices do one step before the next.",
        ),
    ],
) -> None:
    """Do one step of a change of the network key: install a new key, use it, remove the old one.

    After each step, copy DIR/network.keys to every device and send SIGHUP to each device process.
    """
    try:
        changed = keys.rotate(folder, _STEPS[step])
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{step}: {error}") from None
    both = len(changed.secrets) > 1
    _say(f"key {changed.label()} serves" + (f", {changed.label(1)} is installed too" if both else ""))
    after = {Step.install: Step.use, Step.use: Step.remove}
    following = f", then: unweft keys rotate {folder} {after[step]}" if step in after else ""
    _say(f"now give every device network.keys and SIGHUP{following}")


def _install(current: NetworkKeys) -> NetworkKeys:
    if len(current.secrets) > 1:
        raise ValueError("two keys are active already; allowed: use, or remove the second one")
    return current.installed(NetworkKeys.generate().secrets[0])


def _use(current: NetworkKeys) -> NetworkKeys:
    return current.used(_second(current))


def _remove(current: NetworkKeys) -> NetworkKeys:
    return current.removed(_second(current))


def _second(current: NetworkKeys) -> bytes:
    if len(current.secrets) < 2:
        raise ValueError("there is one key only; allowed: install, which makes a second one")
    return current.secrets[1]


_STEPS = {
    Step.install: _install,
    Step.use: _use,
    Step.remove: _remove,
}


def of_device(config: KeysConfig, folder: Path | None, device: str) -> NetworkKeys | None:
    """The keys that a device uses; None if links are not encrypted. Raises InputError if a key is missing."""
    if not config.enabled:
        return None
    if folder is None:
        raise InputError(
            "--keys: missing; make keys with `unweft keys new DIR` and give each device --keys DIR, "
            "or run in the clear with --set keys.enabled=false"
        )
    try:
        found = keys.load(folder, device)
    except ValueError as error:
        raise InputError(f"--keys: {error}; allowed: a folder that `unweft keys new` made") from None
    if config.allow_list and found.allowed is None:
        raise InputError(
            f"--keys: {folder} has no allow-list, which keys.allow_list asks for; "
            "allowed: a folder of `unweft keys new DIR --devices d0,d1,...`"
        )
    return found


def _say(line: str) -> None:
    Console().print(line, highlight=False, soft_wrap=True)
