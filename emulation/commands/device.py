"""`unweft device`: run one device in the foreground, in a container or on a machine of its own.

Its settings come from flags or UNWEFT_ variables. It finds its id, its own address and the addresses of other
devices by itself (docs/deploy.md).
"""

from __future__ import annotations

import importlib
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from coordinator_free.ranges import RUN_NAME_ALLOWED, valid_run_name
from emulation.commands import keys as keys_cli
from emulation.testbed import endpoints, epoch, run_folder, start_gate
from emulation.testbed.id_leases import Claim
from peers.errors import InputError
from peers.runtime import address_book, health, partition
from transport.security.keys import DeviceIdentity

if TYPE_CHECKING:
    from emulation.scenario.schema import Scenario
    from peers.config import DeviceConfig
    from peers.runtime.spec import DeviceSpec

EXAMPLE = (
    "Example: unweft device --id d0 --scenario scenarios/ring.toml --listen tcp://0.0.0.0:7000 "
    "--seeds tcp://10.0.0.6:7000 --keys testbed-keys --out runs/edge"
)


def _check_health(wanted: bool) -> None:
    if wanted:
        raise typer.Exit(health.main())


def device(
    scenario: Annotated[Path, typer.Option(envvar="UNWEFT_SCENARIO", help="The scenario of all devices.")],
    listen: Annotated[
        str,
        typer.Option(
            envvar="UNWEFT_LISTEN",
            help="Endpoint to bind, tcp://host:port. Port 0: a free one; the devices then find each other in "
            "--out, which all must share.",
        ),
    ],
    out: Annotated[Path, typer.Option(envvar="UNWEFT_OUT", help="Folder for the device's files.")],
    id_: Annotated[
        str | None,
        typer.Option(
            "--id",
            envvar="UNWEFT_ID",
            help="Its id, for instance d0; default: the first free id in --out, if all devices share it.",
        ),
    ] = None,
    replica: Annotated[
        int | None,
        typer.Option(min=1, envvar="UNWEFT_REPLICA", help="Instead of --id: replica 1 is d0, 2 is d1, …"),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            envvar="UNWEFT_ADVERTISE",
            help="Endpoint for other devices; default: --listen, or, if that is every interface, the "
            "address in the network of the other devices.",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            envvar="UNWEFT_SEEDS",
            help="Endpoints of other devices, separated by commas; a name stands for all its addresses.",
        ),
    ] = "",
    keys: Annotated[
        Path | None,
        typer.Option(
            envvar="UNWEFT_KEYS", help="Folder of its keys (unweft keys new); read again after SIGHUP."
        ),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            envvar="UNWEFT_IDENTITY",
            help="Folder of its signing key, which a device needs to return; default: --out.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            envvar="UNWEFT_RUN",
            help="Name of the run, the same for all its devices, in every signed statement. Default: that of "
            "a folder that all share, else the seed. A second run with the same keys needs another name.",
        ),
    ] = None,
    snapshots: Annotated[
        bool, typer.Option(envvar="UNWEFT_SNAPSHOTS", help="Write snapshots to --out, for `unweft report`.")
    ] = False,
    leave_grace_s: Annotated[
        float | None,
        typer.Option(
            "--leave-grace",
            min=0,
            envvar="UNWEFT_LEAVE_GRACE_S",
            help="Seconds after SIGTERM to find out whether all devices stop; default: the scenario's.",
        ),
    ] = None,
    health_socket: Annotated[
        str | None,
        typer.Option(envvar=health.VARIABLE, help="Socket file for health checks of this device."),
    ] = None,
    gates: Annotated[
        Path | None,
        typer.Option(
            envvar="UNWEFT_GATES",
            help="Wait before the start until this folder has a file with the device's id.",
        ),
    ] = None,
    wall_clock: Annotated[
        bool,
        typer.Option(
            envvar="UNWEFT_WALL_CLOCK",
            help="For devices on several machines: use wall-clock time, not the machine's monotonic time.",
        ),
    ] = False,
    ask: Annotated[
        bool,
        typer.Option(
            "--health",
            is_eager=True,
            callback=_check_health,
            help=f"Only check the device at the socket {health.VARIABLE}; exit status 0: it is alive.",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=V", help="Replaces a value of the scenario; may be repeated."),
    ] = None,
    variables: Annotated[
        str, typer.Option("--sets", envvar="UNWEFT_SET", help="Values as for --set, separated by blanks.")
    ] = "",
) -> None:
    """Run one device in the foreground, as a container does. Every flag is also an UNWEFT_ variable.

    Exit status 3: the device has left, but too few others have confirmed it. The wish is kept in --out, and
    said when the device starts again.
    """
    signal.signal(signal.SIGTERM, _exit_before_start)
    partition.ignore()
    named = [seed.strip() for seed in seeds.split(",") if seed.strip()]
    _check(listen, advertise, named)
    if health_socket is not None:
        health.check_path(health_socket)
    if run is not None and not valid_run_name(run):
        raise InputError(f"--run: {run[:80]!r} is no name of a run; allowed: {RUN_NAME_ALLOWED}")
    own_name = id_ or (f"replica-{replica}" if replica else socket.gethostname())
    public, signing = _identity(identity, own_name)
    load = _scenario(scenario, [*shlex.split(variables), *(set_ or ())])
    if id_:
        from emulation.scenario.checks import check_device_id

        check_device_id(id_)
    if keys is None:
        keys_cli.of_device(load().keys, None, own_name)  # check before anything is written
    loaded, claim = _enter(out, keys, load, public or secrets.token_hex(16), id_, replica)
    try:
        own_keys = keys_cli.of_device(loaded.keys, keys, claim.id)
        from emulation.radio import wireless
        from peers.runtime.recorder import next_life
        from peers.runtime.spec import DeviceSpec

        if gates is not None:
            importlib.import_module("peers.runtime.main")  # torch takes seconds: not after the wait
            start_gate.wait(gates, claim.id)
        # Resolve as late as possible: then the service's name has all devices that have started.
        book = _address_book(listen, advertise, out)
        others = _resolve(named)
        own_endpoint = advertise or endpoints.own(listen, [*others, *_listed(book)])
        spec = DeviceSpec(
            id=claim.id,
            config=_with_grace(loaded.device_config(), leave_grace_s),
            listen=listen,
            advertise=own_endpoint,
            seeds=tuple(other for other in others if other != own_endpoint),
            out=str(out),
            cohort=len(loaded.initial_devices) if claim.id in loaded.initial_devices else 0,
            epoch_ns=epoch.read(out, wall_clock),
            snapshot_every=loaded.eval.every if snapshots else 0,
            keys=own_keys,
            signing=signing,
            keys_folder=None if own_keys is None else str(keys),
            channel=wireless.channel(loaded, loaded.all_devices),
            addresses=None if book is None else str(book),
            health=health_socket,
            wall_clock=wall_clock,
            life=next_life(out / "devices" / claim.id),
            run=run or epoch.name(out) or f"seed-{loaded.seed}",
        )
        raise typer.Exit(_run(spec))
    finally:
        claim.release()


def _scenario(path: Path, overrides: list[str]) -> Callable[[], Scenario]:
    from emulation.scenario.loading import load

    return partial(load, path, overrides)


def _enter(
    out: Path,
    keys: Path | None,
    load: Callable[[], Scenario],
    token: str,
    id_: str | None,
    replica: int | None,
) -> tuple[Scenario, Claim]:
    """The scenario of the run, and the id of this device."""
    from emulation.scenario.checks import check_device_id

    if id_ is None and replica is None:
        return run_folder.enter(out, keys, load, token)
    loaded = load()
    name = id_ or f"{loaded.devices.prefix}{(replica or 1) - 1}"
    check_device_id(name)
    return loaded, run_folder.enter_as(out, loaded, name, token)


def _exit_before_start(number: int, frame: FrameType | None) -> NoReturn:
    """End the process on SIGTERM. No other device knows this one yet.

    The handler is needed because SIGTERM has no default action for PID 1 of a container.
    """
    os._exit(0)


def _with_grace(config: DeviceConfig, leave_grace_s: float | None) -> DeviceConfig:
    if leave_grace_s is None:
        return config
    membership = config.membership.model_copy(update={"leave_grace_s": leave_grace_s})
    return config.model_copy(update={"membership": membership})


def _check(listen: str, advertise: str | None, seeds: list[str]) -> None:
    for option, endpoint in (("--listen", listen), *([("--advertise", advertise)] if advertise else [])):
        endpoints.split(option, endpoint, own=True)
    for seed in seeds:
        endpoints.split("--seeds", seed)


def _address_book(listen: str, advertise: str | None, out: Path) -> Path | None:
    """The folder in which devices with free ports find each other. None: this device has a given port."""
    ports = [endpoints.split("--listen", endpoint, own=True)[1] for endpoint in (advertise or listen, listen)]
    return address_book.folder_of(out) if 0 in ports else None


def _listed(book: Path | None) -> Iterable[str]:
    return [] if book is None else address_book.read(book).values()


def _resolve(seeds: list[str]) -> list[str]:
    """The endpoints of all seeds. A seed that nobody answers for is no error: it may be known later."""
    found = []
    for seed in seeds:
        resolved = endpoints.resolve(seed)
        if not resolved:
            print(
                f"unweft: --seeds: {seed} resolves to no address; the device starts without it",
                file=sys.stderr,
            )
        found += resolved
    return found


def _identity(folder: Path | None, name: str) -> tuple[str | None, bytes | None]:
    """Public key in hex and seed of the signing key that a folder keeps under this name.

    A container has the same name when it is started again. None: the key is kept in --out.
    """
    if folder is None:
        return None, None
    path = folder / f"{name}.key"
    try:
        public = DeviceIdentity.load_or_create(path).public.hex()
        return public, path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"--identity: {path}: {error}; allowed: a folder that can be written") from None


def _run(spec: DeviceSpec) -> int:
    from coordinator_free.membership.slots import NoFreeSlot
    from peers.runtime.main import run_device

    try:
        return run_device(spec)
    except NoFreeSlot as error:
        raise InputError(f"adapter.max_devices: {error}") from None
