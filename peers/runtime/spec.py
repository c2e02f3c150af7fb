"""The parameters with which a launcher starts a device process. Picklable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from coordinator_free.membership.signed_records import Record
from peers.config import DeviceConfig
from transport.security.keys import NetworkKeys
from transport.shaping.channel import Channel, FixedChannel, LinkQuality

NEAR = FixedChannel(LinkQuality(1 << 40, 1_000_000))  # latency 1 ms; the device's own radio limits the rate


@dataclass(frozen=True, slots=True)
class ScriptedEvent:
    """An event of the scenario that a device performs on itself under the virtual clock.

    The event is due when every present device has closed `round`. With `join` or `return` the device starts
    at this event.
    """

    round: int
    kind: Literal["leave", "retire", "crash", "stall", "join", "return", "partition", "heal"]
    duration_s: float = 0.0  # stall: length of the pause in emulated seconds
    cut_off: frozenset[str] = frozenset()  # partition: devices that no message reaches


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the devices of a run that goes on after an interruption have to know, the same for all."""

    first_round: int
    ended: tuple[Record, ...] = ()  # incarnations that ended before the interruption, signed
    correct_until: int = -1  # last round of the correction that the interruption cut


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """All parameters of one device process."""

    id: str
    config: DeviceConfig
    listen: str  # endpoint to bind: tcp://host:port or ipc:///folder/name (transport/links/endpoints.py)
    advertise: str  # endpoint under which other devices reach this one
    seeds: tuple[str, ...]  # endpoints of devices that may be running already
    out: str  # folder of the run
    cohort: int = 0  # number of devices that start together; 0: join the devices that are present
    epoch_ns: int | None = None  # start of the run on the clock of the device; None: now
    snapshot_every: int = 0  # rounds between snapshots for the evaluator; 0: none
    keys: NetworkKeys | None = None  # None: no encryption and no authentication
    signing: bytes | None = field(default=None, repr=False)  # Ed25519 seed; None: from the device's folder
    keys_folder: str | None = None  # folder from which SIGHUP reads the keys again; None: no rotation
    channel: Channel = NEAR  # rate, latency and loss of the links
    addresses: str | None = None  # folder in which devices find each other (address_book.py); None: none
    health: str | None = None  # socket file for health checks (health.py)
    wall_clock: bool = False  # the devices run on several hosts (transport/clocks/real.py)
    group: Mapping[str, str] = field(default_factory=dict)  # address of every device of the run, if known
    life: int = 0  # number of earlier processes of this id in the run; in every record of this process
    run: str = ""  # the name of the run, equal on all its devices; every signed statement names it
    script: tuple[ScriptedEvent, ...] = ()  # virtual clock: the scenario's events of this device
    elapsed_ns: int = 0  # virtual clock: time of the run before this process, which begins at 0 again
    continues: Continuation | None = None  # the run goes on; only for devices that start together
