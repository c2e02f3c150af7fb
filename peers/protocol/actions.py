"""What the device protocol tells its driver to do. Performed in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator_free.averaging.mixing import Mix
from coordinator_free.correction.policy_interface import GroupAction, Settings
from coordinator_free.identifiers import BlockKey, Part
from transport.wire.messages import Manifest, Message


@dataclass(frozen=True, slots=True)
class Connect:
    peer: str
    address: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    peer: str


@dataclass(frozen=True, slots=True)
class Meet:
    """The device reached under an alias, a seed's address, is known now: its books go under its name."""

    alias: str
    peer: str


@dataclass(frozen=True, slots=True)
class Tell:
    """A control message: never waits behind data."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    """Data of a round for one neighbour, and the manifest that tells what has been sent of it."""

    peer: str
    round: int
    parts: tuple[tuple[Part, int, str], ...]  # part, version, cause
    manifest: Manifest
    codecs: Mapping[Part, str] = field(default_factory=dict)  # where it is not the scenario's


@dataclass(frozen=True, slots=True)
class Farewell:
    """A Bye behind everything that is queued: no more data. `last`: nothing at all is sent after it."""

    peer: str
    reason: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Train:
    round: int
    steps: int
    rehearse: bool
    damping: float
    settings: Settings = field(default_factory=dict)  # of a correction policy, by group
    anchor: bool = False  # a correction begins: the own block is the anchor of proximal damping
    fisher: bool = False  # steps in the eigenbasis of the Fisher information


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Measure the loss's gradients when what was decided before is done (peers/learning/diagnosis.py).

    trials: what to try on this device's model alone, by name of the move: the settings (trials.py). members:
    M where one device of M moves a block; 1 where all do.
    """

    round: int
    trials: Mapping[tuple[str, str], Mapping[str, GroupAction]] = field(default_factory=dict)
    members: int = 1


@dataclass(frozen=True, slots=True)
class Apply:
    mixes: tuple[Mix, ...]


@dataclass(frozen=True, slots=True)
class AddBlock:
    """Another's block, at B = 0, with the copy that is held of an earlier incarnation on that slot, or with
    that of a checkpoint."""

    key: BlockKey
    slot: int
    carry: BlockKey | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class OwnBlock:
    """The own block starts on a slot: at B = 0, with the values of an earlier incarnation on that slot, or
    with those of a checkpoint."""

    key: BlockKey
    slot: int
    carry: BlockKey | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class DropBlock:
    """Delete a block and purge all that is queued of it.

    refit: the share of its output that the own block takes over before (unlearning/handover_refit.py).
    damping: the share of this round's own move that is kept.
    """

    key: BlockKey
    reason: str
    refit: float = 0.0
    damping: float = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    round: int
    tag: str


@dataclass(frozen=True, slots=True)
class Log:
    event: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A closed round, for metrics.jsonl."""

    round: int
    phase: str
    start_ns: int
    trained_ns: int
    end_ns: int
    weights: dict[str, float]
    withheld: int
    members: tuple[str, ...]
    sent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # matrices by group and codec


@dataclass(frozen=True, slots=True)
class Export:
    pass


@dataclass(frozen=True, slots=True)
class Exit:
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The message just handled was not taken in, and why (counted by the driver)."""

    reason: str


Action = (
    Connect | Disconnect | Meet | Tell | Publish | Farewell | Train | Diagnose | Apply | AddBlock | OwnBlock
    | DropBlock | Snapshot | Log | RoundDone | Export | Exit | Drop
)  # fmt: skip
