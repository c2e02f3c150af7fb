"""The actions that the device protocol asks of its driver, which performs them in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator_free.averaging.mixing import Mix
from coordinator_free.correction.policy_interface import GroupAction, Settings
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.signed_records import Record
from transport.wire.messages import Manifest, Message


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a link to a peer."""

    peer: str
    address: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the link to a peer and forget all that is queued for it."""

    peer: str


@dataclass(frozen=True, slots=True)
class Meet:
    """The device behind a seed's alias is known now. Close the alias and book its traffic under `peer`."""

    alias: str
    peer: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a control message. It never waits behind data."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a round's data to one neighbour, and then the manifest that lists it."""

    peer: str
    round: int
    parts: tuple[tuple[Part, int, str], ...]  # part, version, cause
    manifest: Manifest
    codecs: Mapping[Part, str] = field(default_factory=dict)  # parts in another codec than the scenario's


@dataclass(frozen=True, slots=True)
class Farewell:
    """Send a Bye behind all queued data; no data follows. `last`: no message at all follows."""

    peer: str
    reason: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Train:
    """Do the local steps of a round."""

    round: int
    steps: int
    rehearse: bool  # with departure rehearsal
    damping: float  # share of the own move that is kept
    settings: Settings = field(default_factory=dict)  # of a correction policy, by group
    anchor: bool = False  # a correction begins: the own block is the anchor of proximal damping
    fisher: bool = False  # steps in the eigenbasis of the Fisher information


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Measure the loss's gradients once all earlier actions are done (peers/learning/diagnosis.py).

    trials: settings to try on this device's model alone, by name of the move (correction/lookahead.py).
    members: M where one device of M moves a block; 1 where all devices do.
    """

    round: int
    trials: Mapping[tuple[str, str], Mapping[str, GroupAction]] = field(default_factory=dict)
    members: int = 1


@dataclass(frozen=True, slots=True)
class MeasureInputs:
    """Measure the second moments of the own inputs for the owners of these blocks (foreign_inputs.py)."""

    keys: tuple[BlockKey, ...]
    round: int


@dataclass(frozen=True, slots=True)
class KeepInputs:
    """Keep the second moments that the owner of the block `source` has sent."""

    source: BlockKey
    values: bytes


@dataclass(frozen=True, slots=True)
class Apply:
    """Mix copies, or replace them. closes: this is the mixing that closes the round."""

    mixes: tuple[Mix, ...]
    closes: bool = False


@dataclass(frozen=True, slots=True)
class AddBlock:
    """Hold a foreign block. It starts at B = 0, or as a copy of the block `carry`, or from the checkpoint.

    carry: an earlier incarnation on the same slot.
    """

    key: BlockKey
    slot: int
    carry: BlockKey | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class OwnBlock:
    """Start the own block on a slot. It starts at B = 0, or with the values of the block `carry`, or from the
    checkpoint.

    carry: an earlier incarnation on the same slot.
    """

    key: BlockKey
    slot: int
    carry: BlockKey | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class DropBlock:
    """Delete a block and everything queued that was derived from it.

    refit: the share of the block's output that the own block takes over before the deletion
    (unlearning/handover_refit.py). damping: the share of this round's own move that is kept then. copies:
    values of neighbours' copies that were not mixed; their memory is overwritten. project: no step of the
    correction may bring the block's output back (unlearning/projection.py).
    """

    key: BlockKey
    reason: str
    refit: float = 0.0
    damping: float = 1.0
    copies: tuple[object, ...] = field(default=(), compare=False, repr=False)
    project: bool = False


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Write a receipt: the device `who` says that it holds no copy of a block. Only with receipts."""

    key: BlockKey
    who: str  # this device itself, another one, or EVERYBODY (slots.py)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Save the adapter for the evaluator."""

    round: int
    tag: str


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line of events.jsonl."""

    event: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundDone:
    """Write the line of a closed round to metrics.jsonl. Times are ns of the device's clock."""

    round: int
    phase: str  # "train" or "correction"
    start_ns: int
    trained_ns: int
    end_ns: int
    weights: dict[str, float]  # mixing weights of the first group, by neighbour
    withheld: int  # parts that were owed to neighbours and not sent
    members: tuple[str, ...]
    sent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # matrices by group and codec
    block_bytes: Mapping[str, int] = field(default_factory=dict)  # bytes of the copies sent, by block
    price: float | None = None  # nu after this round, where the allocator is `priced`


@dataclass(frozen=True, slots=True)
class Export:
    """Save the adapter of the last closed round for use after the run.

    run_over: the run has ended, so a checkpoint is saved too if the scenario wants one. False: this device
    retires from a run that goes on.
    """

    run_over: bool = True


@dataclass(frozen=True, slots=True)
class SaveLeave:
    """Save the signed records with which this device asks to be forgotten, before anyone is told of them.

    confirmed: another device has them now.
    """

    records: tuple[Record, ...]
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process with status `code`."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The message in progress was refused. The receiver counts it under `reason`."""

    reason: str


Action = (
    Connect | Disconnect | Meet | Tell | Publish | Farewell | Train | Diagnose | MeasureInputs | KeepInputs
    | Apply | AddBlock | OwnBlock | DropBlock | Confirmed | Snapshot | Log | RoundDone | Export | SaveLeave
    | Exit | Drop
)  # fmt: skip
