"""`unweft device`: one device in the foreground, as a container or a machine of its own runs it.

Whatever it needs to know comes from flags or UNWEFT_ variables; what others know too it finds out by itself
(docs/deploy.md): its id, its own address, where the others are.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from emulation.commands import keys as keys_cli
from emulation.testbed import endpoints, epoch, run_folder, start_gate
from emulation.testbed.id_leases import Claim
from peers.errors import InputError
from peers.runtime import health, partition
from transport.security.keys import DeviceIdentity

if TYPE_CHECKING:
    from emulation.scenario.schema import Scenario
    from peers.config import DeviceConfig
    from peers.runtime.main import DeviceSpec

EXAMPLE = (
    "Example: unweft device --id d0 --scenario scenarios/ring.toml --listen tcp://0.0.0.0:7000 "
    "--seeds tcp://10.0.0.6:7000 --keys testbed-keys --out runs/edge"
)


def _ask(wanted: bool) -> None:
    if wanted:
        raise typer.Exit(health.main())


def device(
    scenario: Annotated[Path, typer.Option(envvar="UNWEFT_SCENARIO", help="The scenario that all share.")],
    listen: Annotated[str, typer.Option(envvar="UNWEFT_LISTEN", help="Endpoint to bind, tcp://host:port.")],
    out: Annotated[Path, typer.Option(envvar="UNWEFT_OUT", help="Folder for what it writes.")],
    id_: Annotated[
        str | None,
        typer.Option(
            "--id",
            envvar="UNWEFT_ID",
            help="Its name, for instance d0; default: the first one that is free in --out, which all share.",
        ),
    ] = None,
    replica: Annotated[
        int | None,
        typer.Option(min=1, envvar="UNWEFT_REPLICA", help="In place of --id: replica 1 is d0, 2 is d1, …"),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            envvar="UNWEFT_ADVERTISE",
            help="Endpoint for the others; default: --listen, or where it listens on every interface its "
            "address in the others' network.",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            envvar="UNWEFT_SEEDS",
            help="Endpoints of devices that may be there, with commas; a name stands for all its addresses.",
        ),
    ] = "",
    keys: Annotated[
        Path | None,
        typer.Option(
            envvar="UNWEFT_KEYS", help="Folder of its keys (unweft keys new); SIGHUP reads it again."
        ),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            envvar="UNWEFT_IDENTITY",
            help="Folder of its signing key: with it, it can return; default: --out.",
        ),
    ] = None,
    snapshots: Annotated[
        bool, typer.Option(envvar="UNWEFT_SNAPSHOTS", help="Leave snapshots in --out, for `unweft report`.")
    ] = False,
    leave_grace_s: Annotated[
        float | None,
        typer.Option(
            "--leave-grace",
            min=0,
            envvar="UNWEFT_LEAVE_GRACE_S",
            help="Seconds after SIGTERM to find out whether all are told to stop; default: the scenario's.",
        ),
    ] = None,
    health_socket: Annotated[
        str | None,
        typer.Option(envvar=health.VARIABLE, help="Socket file at which it says how it is."),
    ] = None,
    gates: Annotated[
        Path | None,
        typer.Option(
            envvar="UNWEFT_GATES",
            help="Be ready, but begin only when a file with its id is in this folder.",
        ),
    ] = None,
    wall_clock: Annotated[
        bool,
        typer.Option(
            envvar="UNWEFT_WALL_CLOCK",
            help="Devices are on several machines: count time as the world does, not from a machine's start.",
        ),
    ] = False,
    ask: Annotated[
        bool,
        typer.Option(
            "--health",
            is_eager=True,
            callback=_ask,
            help=f"Only ask the device at the socket {health.VARIABLE}; exit status 0: it lives.",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=V", help="Puts a value over the scenario's; may be repeated."),
    ] = None,
    variables: Annotated[
        str, typer.Option("--sets", envvar="UNWEFT_SET", help="Such assignments, with blanks between them.")
    ] = "",
) -> None:
    """Run one device in the foreground: what a container runs. Every flag is also an UNWEFT_ variable."""
    signal.signal(signal.SIGTERM, _gone_before_it_came)
    partition.ignore()
    named = [seed.strip() for seed in seeds.split(",") if seed.strip()]
    _check(listen, advertise, named)
    own_name = id_ or (f"replica-{replica}" if replica else socket.gethostname())
    public, signing = _identity(identity, own_name)
    load = _scenario(scenario, [*shlex.split(variables), *(set_ or ())])
    if id_:
        from emulation.scenario.checks import check_device_id

        check_device_id(id_)
    if keys is None:
        keys_cli.of_device(load().keys, None, own_name)  # refused before anything is written
    loaded, claim = _enter(out, keys, load, public or secrets.token_hex(16), id_, replica)
    try:
        own_keys = keys_cli.of_device(loaded.keys, keys, claim.id)
        from emulation.radio import wireless
        from peers.runtime.main import DeviceSpec

        if gates is not None:
            start_gate.wait(gates, claim.id)
        # As late as can be: whoever has started by now is found under the service's name.
        others = [other for seed in named for other in endpoints.resolve(seed)]
        here = advertise or endpoints.own(listen, others)
        spec = DeviceSpec(
            id=claim.id,
            config=_with_grace(loaded.device_config(), leave_grace_s),
            listen=listen,
            advertise=here,
            seeds=tuple(other for other in others if other != here),
            out=str(out),
            cohort=len(loaded.initial_devices) if claim.id in loaded.initial_devices else 0,
            epoch_ns=epoch.read(out, wall_clock),
            snapshot_every=loaded.eval.every if snapshots else 0,
            keys=own_keys,
            signing=signing,
            keys_folder=None if own_keys is None else str(keys),
            channel=wireless.channel(loaded, loaded.all_devices),
            health=health_socket,
            wall_clock=wall_clock,
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
    """What is to be run, and as whom."""
    from emulation.scenario.checks import check_device_id

    if id_ is None and replica is None:
        return run_folder.enter(out, keys, load, token)
    loaded = load()
    name = id_ or f"{loaded.devices.prefix}{(replica or 1) - 1}"
    check_device_id(name)
    return loaded, run_folder.enter_as(out, loaded, name, token)


def _gone_before_it_came(number: int, frame: FrameType | None) -> NoReturn:
    """Nobody knows of it yet, so there is nothing to forget. As PID 1 it must say so itself: SIGTERM alone
    ends no first process."""
    os._exit(0)


def _with_grace(config: DeviceConfig, leave_grace_s: float | None) -> DeviceConfig:
    if leave_grace_s is None:
        return config
    membership = config.membership.model_copy(update={"leave_grace_s": leave_grace_s})
    return config.model_copy(update={"membership": membership})


def _check(listen: str, advertise: str | None, seeds: list[str]) -> None:
    for option, endpoint in (
        ("--listen", listen),
        *([("--advertise", advertise)] if advertise else []),
        *(("--seeds", seed) for seed in seeds),
    ):
        endpoints.split(option, endpoint)


def _identity(folder: Path | None, name: str) -> tuple[str | None, bytes | None]:
    """Public half in hex and seed of the signing key that a folder keeps under this name.

    A container's name stays when it is started again. None: the device's results keep its key.
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
