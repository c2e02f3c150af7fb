"""Makes the parts of a device and joins them. Every part gets its callbacks in its constructor.

It is apart from `main`, because benchmarks and tests run the same device with other links or another learner.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from coordinator_free.averaging.mixing import MODES
from peers.learning.assumed_copies import AssumedCopies
from peers.learning.learner import Learner
from peers.learning.neighbour_copies import NeighbourCopies
from peers.protocol import similar_copies
from peers.protocol.actions import Action
from peers.protocol.signed_versions import Versions
from peers.protocol.state_machine import DeviceProtocol, Identity
from peers.radio_config import FIFO
from peers.runtime.clock_differences import ClockDifferences
from peers.runtime.components import Components
from peers.runtime.delivery import Delivery
from peers.runtime.driver import Driver
from peers.runtime.event_queue import EventQueue
from peers.runtime.external_events import ExternalEvents
from peers.runtime.flow_control import FlowControl
from peers.runtime.host import OWN_PROCESS, Host
from peers.runtime.learner_thread import LearnerThread
from peers.runtime.payload_encoder import PayloadEncoder
from peers.runtime.receipts import Receipts
from peers.runtime.receiver import Receiver
from peers.runtime.reception_accounts import ReceptionAccounts
from peers.runtime.recorder import EventRecorder, Recorder
from peers.runtime.scripted_events import ScriptedEvents
from peers.runtime.sender import Sender, Shape
from peers.runtime.spec import Continuation, DeviceSpec, ScriptedEvent
from peers.runtime.update_assembly import UpdateAssembly
from peers.storage import leave_wishes
from peers.storage.receipt_chain import ReceiptChain
from transport.clocks.real import Clock, RealClock
from transport.clocks.virtual import VirtualClock, device_of
from transport.links.interface import Links
from transport.security.keys import DeviceIdentity, verify
from transport.shaping.accounting import Accounts

MakeDriver = Callable[[DeviceSpec, Links, Accounts, Learner, Recorder, DeviceIdentity], Driver]


def make_driver(
    spec: DeviceSpec,
    links: Links,
    accounts: Accounts,
    learner: Learner,
    recorder: Recorder,
    identity: DeviceIdentity,
    host: Host = OWN_PROCESS,
) -> Driver:
    """Call it in the running event loop, with links that are started and count their drops in `accounts`."""
    identity = identity.for_run(spec.run)
    if spec.config.privacy.on:
        learner.keep_account(recorder.folder)
    virtual = _virtual_clock(spec, links)
    clock: Clock = virtual or RealClock(spec.wall_clock)
    queue, external = EventQueue(), ExternalEvents(clock)
    versions = Versions(spec.id, identity.sign)
    copies = None if spec.config.radio.allocator == FIFO else NeighbourCopies()
    assumes = similar_copies.applies(spec.config)
    assumed = AssumedCopies(spec.config.mixing.tolerance) if assumes else None
    learner_thread = LearnerThread(
        learner,
        recorder,
        spec.config,
        external.on_learner_failure,
        versions,
        copies,
        assumed,
        host.worker(),
    )
    signed = versions if MODES[spec.config.mixing.mode]().shared_versions else None
    encoder = PayloadEncoder(spec, learner, signed, copies, assumed)
    sender = _sender(spec, links, accounts, learner, clock, virtual)
    protocol = _protocol(spec, links, learner, recorder, identity, sender)
    events = EventRecorder(recorder, clock, lambda: protocol.round)
    receipts = Receipts(
        _chain(spec, recorder, identity),
        *(learner_thread, learner, protocol, lambda: recorder.seconds(clock.now())),
    )
    scripted = _scripted(spec, virtual, queue, sender, protocol, events, receipts)
    devices = frozenset(device_of(life) for life in spec.group)
    differences = ClockDifferences(accounts) if spec.wall_clock and virtual is None else None
    flow_control = FlowControl(
        *(sender, learner_thread, accounts, lambda: scripted.absent, devices, differences)
    )
    reception = ReceptionAccounts(protocol, accounts, links.security_events)
    delivery = Delivery(
        protocol,
        UpdateAssembly(learner),
        reception,
        on_arrival=flow_control.on_arrival,
        on_copy=learner_thread.on_neighbour_copy,
    )
    authenticated = spec.keys is not None
    receiver = Receiver(
        *(links, reception, delivery, queue, clock, virtual, differences), authenticated=authenticated
    )
    components = Components(
        spec=spec,
        links=links,
        accounts=accounts,
        clock=clock,
        virtual=virtual,
        queue=queue,
        learner_thread=learner_thread,
        encoder=encoder,
        sender=sender,
        protocol=protocol,
        receiver=receiver,
        delivery=delivery,
        reception=reception,
        recorder=recorder,
        receipts=receipts,
        events=events,
        host=host,
        clock_differences=differences,
    )
    return Driver(components, scripted, external)


def count_drop(accounts: Accounts) -> Callable[[str, str, int], None]:
    """The callback with which links count the messages that they drop (`Links.start`)."""
    return lambda source, reason, size: accounts.source(source, known=False).dropped(reason, size)


def _virtual_clock(spec: DeviceSpec, links: Links) -> VirtualClock | None:
    if spec.config.clock != "virtual":
        return None
    return VirtualClock(spec.id, spec.life, spec.group, spec.channel.min_latency_ns, links)


def _sender(
    spec: DeviceSpec,
    links: Links,
    accounts: Accounts,
    learner: Learner,
    clock: Clock,
    virtual: VirtualClock | None,
) -> Sender:
    layout = learner.layout
    return Sender(
        spec,
        {group: Shape(layout.rows(group), layout.rank(group)) for group in learner.groups},
        links,
        accounts,
        clock.now(),
        signed=MODES[spec.config.mixing.mode]().shared_versions,
        on_sent=_ignore if virtual is None else virtual.on_sent,
        wake=clock.poke,
    )


def _protocol(
    spec: DeviceSpec,
    links: Links,
    learner: Learner,
    recorder: Recorder,
    identity: DeviceIdentity,
    sender: Sender,
) -> DeviceProtocol:
    wish = leave_wishes.read(recorder.folder)
    goes_on = spec.continues or Continuation(0)
    begins = recorder.is_first or spec.continues is not None
    me = Identity(
        spec.id,
        spec.advertise,
        identity.public,
        spec.seeds,
        spec.cohort,
        spec.snapshot_every,
        learner.resumes() if spec.cohort and begins else (),
        () if wish.confirmed else wish.records,
        links.signer,
        spec.run,
        goes_on.first_round,
        goes_on.ended,
        goes_on.correct_until,
    )
    return DeviceProtocol(
        me,
        spec.config,
        learner.fingerprint.to_dict(),
        learner.difference,
        {group: learner.layout.size(group) for group in learner.groups},
        sender.part_wire_bytes,
        identity.sign,
        partial(verify, run=spec.run),
    )


def _scripted(
    spec: DeviceSpec,
    virtual: VirtualClock | None,
    queue: EventQueue,
    sender: Sender,
    protocol: DeviceProtocol,
    events: EventRecorder,
    receipts: Receipts,
) -> ScriptedEvents:
    start = partial(_start, spec=spec, events=events, protocol=protocol, receipts=receipts)
    record = partial(_record_scripted, events=events)
    set_partition, signal = sender.set_partition, protocol.signal
    return ScriptedEvents(spec.script, virtual, queue, start, set_partition, signal, record)


def _chain(spec: DeviceSpec, recorder: Recorder, identity: DeviceIdentity) -> ReceiptChain | None:
    """`identity`: it signs for the run."""
    if not spec.config.membership.receipts:
        return None
    of_device = recorder.folder, spec.id, spec.life
    return ReceiptChain(*of_device, spec.run, identity.public, identity.sign)


def _start(
    now: int, spec: DeviceSpec, events: EventRecorder, protocol: DeviceProtocol, receipts: Receipts
) -> list[Action]:
    events.record(now, "started", pid=os.getpid(), address=spec.advertise)
    receipts.begin()
    return protocol.start(now)


def _record_scripted(now: int, event: ScriptedEvent, events: EventRecorder) -> None:
    events.record(now, "scripted", kind=event.kind, at_round=event.round)


def _ignore(address: str, arrive_ns: int) -> None:
    """In real time nobody counts the messages on their way."""
