"""A network of device protocols in simulated time: the actions of one device become events at the others.

Devices share only the clock, an integer of ns. Small arrays stand for the learner: local steps add
`move(device, round)` to the own block, and mixing takes no time. Messages keep their order within a class
(control, data) on a link, as in the shaper, and pass through the wire format.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator_free.correction.residuals import Size
from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.protocol import actions as do
from peers.protocol.signed_versions import SignedCopy, statement
from peers.protocol.state_machine import DeviceProtocol, Identity
from tests.support.signatures import public, sign_as, verify
from tests.support.simulated_assumptions import Assumptions
from transport.security.keys import in_run
from transport.wire.messages import Bye, Envelope, Message, Update
from transport.wire.packing import pack, unpack

Values = NDArray[np.float64]
Event = Callable[[int], list[do.Action]]
SECOND, MILLI = 1_000_000_000, 1_000_000
WIDTH = 3  # values of a part
PART_BYTES = 100  # what a part costs of the budget
GROUPS = ("early", "late")
PLENTY = 1_000_000  # bytes: a budget that withholds nothing


def small_config(**sections: Any) -> DeviceConfig:
    """Defaults for rounds of about 0.1 s. The keys of a given section replace those of the default."""
    defaults: dict[str, dict[str, Any]] = {
        **{"adapter": {"max_devices": 8}, "round": {"count": 100_000, "deadline_s": 2.0}},
        **{"correction": {"rounds": 3}, "membership": {"settle_s": 20.0}, "mixing": {"tolerance": 0.0}},
    }
    for name, section in sections.items():
        known = defaults.get(name)
        sections[name] = {**known, **section} if known else section
    return DeviceConfig.model_validate({**defaults, **sections})


def address(device: str) -> str:
    return f"sim://{device}"


def move(device: str, round_: int) -> Values:
    """The change of each part of the own block in a round: bounded, and different for each device."""
    seed = sum(map(ord, device))
    angles: Values = np.arange(1.0, 1 + WIDTH) * (1 + seed + 7 * round_)
    return np.sin(angles)


def still(device: str, round_: int) -> Values:
    """Local steps that change nothing."""
    return np.zeros(WIDTH)


class SimDevice:
    """One protocol, the values of its learner, and a record of all its actions."""

    def __init__(self, me: Identity, config: DeviceConfig, fingerprint: dict[str, Any]) -> None:
        self.name = me.device

        def difference(other: dict[str, Any]) -> str | None:
            return None if other == fingerprint else f"bases: {fingerprint} here, {other} there"

        self.protocol = DeviceProtocol(
            me,
            config,
            fingerprint,
            difference,
            dict.fromkeys(GROUPS, Size(2, 32)),
            lambda group, codec=None: PART_BYTES // 2 if codec == "int8" else PART_BYTES,
            lambda data: sign_as(me.public.removeprefix(b"public:").decode(), in_run(me.run, data)),
            lambda public, data, signature: verify(public, in_run(me.run, data), signature),
        )
        self.values: dict[Part, Values] = {}
        self.slots: dict[BlockKey, int] = {}
        self.changed: set[Part] = set()
        self.assumed = Assumptions(config.mixing.tolerance)
        self.links: dict[str, str] = {}  # peer or alias: address
        self.told: list[do.Action] = []
        self.dropped: Counter[str] = Counter()
        self.exit: do.Exit | None = None
        self.crashed = False
        self.stalled_until = self.wake_ns = 0
        self.budget_bytes, self.train_ns, self.move = PLENTY, 100 * MILLI, move
        self.outages = frozenset[str]()
        self.measure: Callable[[str, int], Iterable[float]] | None = None  # of a device after a round

    @property
    def live(self) -> bool:
        return self.exit is None and not self.crashed

    @property
    def round(self) -> int:
        return self.protocol.round

    def done(self, kind: type[Any]) -> list[Any]:
        """The actions of a kind so far, in order."""
        return [action for action in self.told if isinstance(action, kind)]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [log.fields for log in self.done(do.Log) if log.event == event]

    def block(self, key: BlockKey) -> dict[str, Values]:
        return {group: self.values[Part(key, group)] for group in GROUPS}

    def put(self, key: BlockKey, values: Values) -> None:
        """Put values into a copy as if a mixing had moved it."""
        for group in GROUPS:
            self.values[Part(key, group)] = values.copy()
            self.changed.add(Part(key, group))

    def table(self) -> tuple[object, ...]:
        """The state on which all devices must agree: members, blocks and slots, as decided and as held."""
        members = self.protocol.members
        blocks = {key: record.slot for key, record in self.protocol.blocks.items()}
        alive = {device: record.key for device, record in members.alive().items()}
        known = [(r.key, r.status, r.slot, r.since_round) for r in members]
        return known, alive, blocks, self.slots, {part.block for part in self.values}

    # -- the learner --------------------------------------------------------------------------------
    def train(self, action: do.Train) -> set[Part]:
        """Change the own block; returns the parts that mixing has changed before."""
        changed, self.changed = self.changed, set()
        if self.protocol.own is not None:
            step = action.damping * self.move(self.name, action.round)
            for group in GROUPS:
                part = Part(self.protocol.own.key, group)
                self.values[part] = self.values[part] + step
        return changed

    def apply(self, action: do.Apply) -> None:
        for mix in action.mixes:
            if mix.part not in self.values:
                continue
            own = self.values[mix.part]
            mixed = own * (1.0 - sum(weight for weight, _ in mix.terms))
            for weight, copy in mix.terms:
                values = copy.matrix if isinstance(copy, SignedCopy) else copy
                if values is not None:
                    mixed = mixed + weight * values
            self.assumed.follow(mix.part, mix.follow, own)
            if not np.array_equal(mixed, own):
                self.values[mix.part] = mixed
                self.changed.add(mix.part)

    def add(self, key: BlockKey, slot: int, carry: BlockKey | None = None) -> None:
        assert key not in self.slots, f"block {key} is held already"
        self.slots[key] = slot
        for group in GROUPS:
            zero = np.zeros(WIDTH)
            self.values[Part(key, group)] = zero if carry is None else self.values[Part(carry, group)]

    def drop(self, key: BlockKey) -> None:
        self.slots.pop(key, None)
        self.assumed.drop(key)
        for group in GROUPS:
            self.values.pop(Part(key, group), None)
            self.changed.discard(Part(key, group))


class Network:
    """Devices, the messages between them and the time."""

    def __init__(self, config: DeviceConfig, latency_ns: Callable[[], int] = lambda: 5 * MILLI) -> None:
        self.config = config
        self.now = 0
        self.devices: dict[str, SimDevice] = {}
        self.everyone: list[SimDevice] = []  # with earlier processes of a device
        self.loses: Callable[[str, str, object], bool] = lambda source, target, message: False
        self._latency_ns = latency_ns
        self.unread: list[object] = []  # messages to a device that had gone
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._arrived: Counter[tuple[str, str, bool]] = Counter()  # latest arrival by link and class

    def __getitem__(self, device: str) -> SimDevice:
        return self.devices[device]

    def __iter__(self) -> Iterator[SimDevice]:
        """The live devices, in order of id."""
        return (device for _, device in sorted(self.devices.items()) if device.live)

    # -- devices -----------------------------------------------------------------------------------
    def add(self, device: str, *seeds: str, cohort: int = 0, bases: str = "q", **more: Any) -> SimDevice:
        """Start a device, or start it again; `more`: budget_bytes, train_ns, move, config, snapshot_every,
        wishes, public (the key that it says is its own), run (the name of its run), and of a run that goes on
        resumes, first_round, ended, correct_until."""
        config, every = more.pop("config", self.config), more.pop("snapshot_every", 0)
        at, wishes = tuple(map(address, seeds)), more.pop("wishes", ())
        key = more.pop("public", public(device))
        run, names = more.pop("run", ""), ("resumes", "first_round", "ended", "correct_until")
        goes_on = {name: more.pop(name) for name in names if name in more}
        me = Identity(device, address(device), key, at, cohort, every, wishes=wishes, run=run, **goes_on)
        started = self.devices[device] = SimDevice(me, config, {"bases": bases})
        self.everyone.append(started)
        for name, value in more.items():
            assert hasattr(started, name), name
            setattr(started, name, value)
        self._handle(started, started.protocol.start)
        return started

    def cohort(self, size: int, **more: Any) -> list[SimDevice]:
        """Start d0, d1, ... together. Each knows the first three, as with the launcher."""
        names = [f"d{i}" for i in range(size)]
        return [
            self.add(name, *[other for other in names if other != name][:3], cohort=size, **more)
            for name in names
        ]

    def crash(self, device: str) -> None:
        self[device].crashed = True

    def stall(self, device: str, seconds: float) -> None:
        """Delay all events of the device until the stall ends; they keep their order."""
        self[device].stalled_until = self.now + int(seconds * SECOND)

    def signal(self, device: str, kind: str) -> None:
        self._handle(self[device], partial(self[device].protocol.signal, kind=kind))

    # -- time --------------------------------------------------------------------------------------
    def at(self, time_ns: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_ns, next(self._order), event))

    def run(self, seconds: float) -> None:
        end = self.now + int(seconds * SECOND)
        while self._events and self._events[0][0] <= end:
            self._next()
        self.now = end

    def until(self, true: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Run to the first event after which it is true. Fails after `limit_s` of simulated time."""
        end = self.now + int(limit_s * SECOND)
        while not true():
            assert self._events and self._events[0][0] <= end, f"never, in {limit_s} s: {self._where()}"
            self._next()

    def rounds(self, number: int) -> None:
        """Run until every live device has closed `number` more rounds."""
        goals = {device.name: device.round + number for device in self}
        self.until(lambda: all(device.round >= goals.get(device.name, 0) for device in self), 10.0 * number)

    def _next(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        event()

    def _where(self) -> str:
        return ", ".join(f"{d.name} {d.protocol.phase.value} {d.round}" for d in self)

    # -- events and actions ------------------------------------------------------------------------
    def _handle(self, device: SimDevice, event: Event) -> None:
        """Due timers first, then the event, as the driver does."""
        if not device.live:
            return
        if self.now < device.stalled_until:
            self.at(device.stalled_until, partial(self._handle, device, event))
            return
        self._wake(device)
        if device.live:
            self._perform(device, event(self.now))
        self._set_alarm(device)

    def _wake(self, device: SimDevice) -> None:
        due = device.protocol.next_timer_ns()
        if due is not None and due <= self.now:
            self._perform(device, device.protocol.tick(self.now))

    def _set_alarm(self, device: SimDevice) -> None:
        due = device.protocol.next_timer_ns()
        if device.live and due is not None and due != device.wake_ns:
            device.wake_ns = due
            self.at(due, partial(self._handle, device, lambda now: []))

    def _perform(self, device: SimDevice, actions: list[do.Action]) -> None:
        for action in actions:
            device.told.append(action)
            match action:
                case do.Connect():
                    device.links[action.peer] = action.address
                case do.Disconnect(peer) | do.Meet(peer, _):
                    device.links.pop(peer, None)
                case do.Tell():
                    self.send(device, action.peer, action.message)
                case do.Publish():
                    self._publish(device, action)
                case do.Farewell():
                    self.send(device, action.peer, Bye(action.reason, action.last), data=True)
                case do.Train():
                    self.at(self.now + device.train_ns, partial(self._trained, device, action))
                case do.Diagnose() if device.measure is not None:
                    self.at(self.now + 20 * MILLI, partial(self._measured, device, action.round))
                case do.MeasureInputs(keys):
                    told = partial(device.protocol.inputs_measured, values=dict.fromkeys(keys, bytes(4)))
                    self.at(self.now + 20 * MILLI, partial(self._handle, device, told))
                case do.Apply():
                    device.apply(action)
                case do.AddBlock() | do.OwnBlock():
                    device.add(action.key, action.slot, action.carry)
                case do.DropBlock(key):
                    device.drop(key)
                case do.Drop(reason):
                    device.dropped[reason] += 1
                case do.Exit():
                    device.exit = device.exit or action

    def _measured(self, device: SimDevice, epoch: int) -> None:
        assert device.measure is not None
        values = device.measure(device.name, epoch)
        self._handle(device, lambda now: device.protocol.diagnosed(now, epoch, values))

    def _trained(self, device: SimDevice, action: do.Train) -> None:
        def event(now: int) -> list[do.Action]:
            changed = device.train(action)
            near, outages = device.assumed.near(device.values), device.outages
            return device.protocol.trained(now, changed, device.budget_bytes, outages=outages, near=near)

        self._handle(device, event)

    # -- messages ----------------------------------------------------------------------------------
    def send(self, source: SimDevice, peer: str, message: Message, data: bool = False) -> None:
        """Send a message. `data`: it arrives after the data that was sent before it."""
        own = source.protocol.own
        envelope = Envelope(source.name, own.incarnation if own else 0)
        _, arrives = unpack(pack(envelope, message))
        self._carry(source, peer, arrives, data, partial(_receive, envelope, arrives))

    def _publish(self, source: SimDevice, action: do.Publish) -> None:
        for part, version, cause in action.parts:
            values = source.values[part].copy()
            source.assumed.note(action.peer, part, values)
            header = update_header(part, version, action.round, cause)
            if source.protocol.signed_versions:  # relays send what the owner has signed
                signed = statement(part, version, header.codec, values.tobytes())
                header.signature = sign_as(part.block.device, signed)
            take = partial(_take, source.name, header, values)
            self._carry(source, action.peer, header, True, take)
        self.send(source, action.peer, action.manifest, data=True)

    def _carry(
        self,
        source: SimDevice,
        peer: str,
        message: object,
        data: bool,
        take: Callable[[SimDevice, int], list[do.Action]],
    ) -> None:
        target = source.links.get(peer, "").removeprefix("sim://")
        if not target or self.loses(source.name, target, message):
            return
        link = (source.name, target, data)
        before = self._arrived[link]
        if data and not isinstance(message, Update):  # a manifest or a goodbye arrives after all sent data
            before = max(before, self._arrived[source.name, target, False])
        arrival = self._arrived[link] = max(before, self.now + self._latency_ns())

        def arrive() -> None:
            device = self.devices.get(target)
            if device is None:
                self.unread.append(message)
            else:
                self._handle(device, partial(take, device))

        self.at(arrival, arrive)


def _receive(envelope: Envelope, message: Message, device: SimDevice, now: int) -> list[do.Action]:
    return device.protocol.on_message(now, envelope.src, message)


def _take(source: str, header: Update, values: Values, device: SimDevice, now: int) -> list[do.Action]:
    """Take in a whole matrix, as the receiver does."""
    reason = device.protocol.admit(source, header)
    if reason is not None:
        return [do.Drop(reason)]
    return device.protocol.update(now, source, header, values, values.tobytes())


def update_header(part: Part, version: int, round_: int, cause: str = "train") -> Update:
    """The header of an update that is one fragment, in fp32."""
    block, group = part
    return Update(*(*block, group, version, round_, cause), *("fp32", WIDTH, 1, 0, 4 * WIDTH))


def refusal(device: SimDevice, source: str, block: BlockKey) -> str | None:
    """Why a device refuses data of a block from a source; None: it admits the data."""
    return device.protocol.admit(source, update_header(Part(block, GROUPS[0]), 0, 0))
