"""The wired parts of one device, which the driver and its helpers share."""

from __future__ import annotations

from dataclasses import dataclass

from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.clock_differences import ClockDifferences
from peers.runtime.delivery import Delivery
from peers.runtime.event_queue import EventQueue
from peers.runtime.host import Host
from peers.runtime.learner_thread import LearnerThread
from peers.runtime.payload_encoder import PayloadEncoder
from peers.runtime.receipts import Receipts
from peers.runtime.receiver import Receiver
from peers.runtime.reception_accounts import ReceptionAccounts
from peers.runtime.recorder import EventRecorder, Recorder
from peers.runtime.sender import Sender
from peers.runtime.spec import DeviceSpec
from transport.clocks.real import Clock
from transport.clocks.virtual import VirtualClock
from transport.links.interface import Links
from transport.shaping.accounting import Accounts


@dataclass(frozen=True, slots=True)
class Components:
    """One of each. `virtual` is `clock` in a virtual run, else None."""

    spec: DeviceSpec
    links: Links
    accounts: Accounts
    clock: Clock
    virtual: VirtualClock | None
    queue: EventQueue
    learner_thread: LearnerThread
    encoder: PayloadEncoder
    sender: Sender
    protocol: DeviceProtocol
    receiver: Receiver
    delivery: Delivery
    reception: ReceptionAccounts
    recorder: Recorder
    receipts: Receipts
    events: EventRecorder
    host: Host
    clock_differences: ClockDifferences | None  # None: all devices are on one host

    @property
    def incarnation(self) -> int:
        """The incarnation for the header of an outgoing message; 0 before the device has a block."""
        return self.protocol.own.incarnation if self.protocol.own else 0
