"""Well-formed but hostile messages of all types, as a member with the keys of the run can send them.

Most of them pass the checks of the wire format, and lie. Some have values out of range, which an own encoder
packs. All are drawn from a seeded generator.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgpack

from coordinator_free.membership.signed_records import Record, Status
from coordinator_free.ranges import NAME_BYTES
from transport.security.keys import DeviceIdentity
from transport.wire import messages
from transport.wire.fields import RECORDS, TREE, WORDS
from transport.wire.limits import MAX_RECORDS
from transport.wire.packing import CODES, MAGIC, PREFIX, VERSION, pack, seal

BAD_NAMES = ("x" * 200, "a\nb", "/../../x", "..", "?x", "", "d0@0", "*", "\u202e", "d" * 61)
BAD_ADDRESSES = (
    "tcp://no-such-name.invalid:1",
    "tcp://127.0.0.1:1",
    "ipc:///tmp/x",
    "tcp://a\nb:1",
    "t" * 300,
)
INVENTED = 40  # names of members that do not exist
FLIGHT_NS = 2_000_000_000  # longest time until the arrival that a message names
EARLY = 0.02  # share of the messages that name a later arrival
IMPOSSIBLE = 0.02  # share of the messages that name an arrival after the bound
CLOSING = 0.1  # share of the messages that end a greeting which are sent: strangers' messages are refused
ENDS_GREETING = (messages.Hello, messages.Bye)
Frames = list[bytes]


class HostileMessages:
    """`me`, `incarnation`: of the hostile member. `groups`: of the adapter.

    `identity` signs its records. `hello`: an honest one, which greets again after a bad one.
    `evicts`: whether it also sends crash verdicts about others.
    """

    def __init__(
        self,
        seed: object,
        me: str,
        identity: DeviceIdentity,
        groups: Sequence[str],
        hello: messages.Hello,
        *,
        rounds: int,
        slots: int,
        evicts: bool = True,
        invents: bool = True,
    ) -> None:
        self._draw = random.Random(repr(seed))
        self._me, self._identity, self._groups = me, identity, groups
        self._honest_hello = hello
        self._rounds, self._slots, self._evicts = rounds, slots, evicts
        names = [f"ghost{n}" for n in range(INVENTED)] if invents else []
        self.ghosts = {name: DeviceIdentity.generate().for_run(identity.run) for name in names}
        self._makers: list[Callable[[], messages.Message]] = [
            *(self._gossip, self._gossip, self._manifest, self._request, self._ping, self._ack, self._nack),
            *(self._ping_request, self._suspect, self._deleted, self._bye, self._stopping, self._observed),
            *(self._hello, self._refuse, self._credit, self._window, self._updates, self._updates),
            *(self._inputs, self._transit),
        ]
        self.members: list[Record] = []  # records that it knows
        self.epoch = 0  # the present round

    def next_frames(self, now_ns: int, seq: int) -> Frames:
        """The next message, packed."""
        draw = self._draw
        depart = draw.choice((now_ns, 0, now_ns + 10**12, draw.randrange(1 << 62)))
        arrive = self._arrival(now_ns)
        envelope = messages.Envelope(self._me, draw.choice((0, 1, 1 << 31)), seq, depart, arrive)
        if draw.random() < 0.2:
            return self._out_of_range(envelope)
        while True:
            message = draw.choice(self._makers)()
            if isinstance(message, ENDS_GREETING) and draw.random() > CLOSING:
                message = self._honest_hello
            payload = self._payload(message) if isinstance(message, messages.Updates) else None
            try:
                return [bytes(frame) for frame in pack(envelope, message, payload)]
            except ValueError:
                continue  # a name that this encoder refuses

    def _arrival(self, now_ns: int) -> int:
        """Few messages arrive later: they fill a bound of the receiver, which then refuses all others."""
        kind = self._draw.random()
        if kind < IMPOSSIBLE:
            return 1 << 62
        if kind < IMPOSSIBLE + EARLY:
            return now_ns + self._draw.randrange(FLIGHT_NS)
        return self._draw.choice((now_ns, now_ns, 0))

    # -- values ------------------------------------------------------------------------------------------
    def _number(self) -> int:
        return self._draw.choice(
            (0, 1, 7, self.epoch, self.epoch + 1, 1 << 20, 1 << 31, (1 << 40) - 1, 1 << 40)
        )

    def _round(self) -> int:
        last = self._rounds - 1
        return self._draw.choice(
            (-1, 0, self.epoch, self.epoch + 1, last, last + 1, self._draw.randrange(last))
        )

    def _incarnation(self) -> int:
        return self._draw.choice((0, 0, 1, 2, self._draw.randrange(100), 1 << 31))

    def _device(self) -> str:
        known = [record.device for record in self.members] or [self._me]
        return self._draw.choice((*known, self._me, "nobody", *self.ghosts))

    def _group(self) -> str:
        return self._draw.choice((*self._groups, "none"))

    def _digest(self) -> bytes:
        return self._draw.randbytes(16)

    def _items(self, most: int) -> list[tuple[str, int, str, int]]:
        number = self._draw.choice((0, 1, 5, most))
        return [
            (
                self._device(),
                self._incarnation(),
                self._group(),
                self._draw.choice((-1, 0, self.epoch, 1 << 60)),
            )
            for _ in range(number)
        ]

    # -- records -----------------------------------------------------------------------------------------
    def _record(self) -> Record:
        draw = self._draw
        if self.members and draw.random() < 0.5:
            known = draw.choice(self.members)
            if known.device != self._me and self._evicts and draw.random() < 0.02:
                return replace(known, status=Status.CRASHED)  # any member may say so
            return replace(known, lamport=known.lamport + 1, status=draw.choice(list(Status)))  # forged
        name, key = draw.choice([(self._me, self._identity), *self.ghosts.items()])
        ends = (Status.WITHDRAWN, Status.ALIVE, Status.CRASHED, Status.RETIRED)
        lamport = draw.choice((1, 1, 5, 1 << 20, 1 << 47))
        address, slot = draw.choice(BAD_ADDRESSES[:2]), draw.randrange(self._slots + 1)
        # A larger own incarnation would leave the honest code of this device no further one.
        incarnation = draw.randrange(9) if name == self._me else self._incarnation()
        made = Record(
            name,
            incarnation,
            address,
            slot,
            lamport,
            claimed=draw.choice((0, 1, lamport)),
            status=draw.choice(ends),
            since_round=self._number() - 1,
            public=key.public,
        )
        return replace(made, signature=key.sign(made.signed_data()))

    def _gossip(self) -> messages.Gossip:
        records = [self._record().to_dict() for _ in range(self._draw.choice((1, 1, 3, 30)))]
        return messages.Gossip(records, self._draw.random() < 0.5, self._round())

    # -- messages ----------------------------------------------------------------------------------------
    def _manifest(self) -> messages.Manifest:
        statuses = ("sent", "replaces", "unchanged", "similar", "withheld")
        items = [(*item, self._draw.choice(statuses)) for item in self._items(40)]
        return messages.Manifest(
            self._round(), self._draw.choice(("train", "correction")), self._digest(), items
        )

    def _request(self) -> messages.Request:
        return messages.Request(self._items(100), self._round())

    def _ping(self) -> messages.Ping:
        return messages.Ping(self._number(), self._digest())

    def _ack(self) -> messages.Ack:
        return messages.Ack(self._draw.randrange(50), self._digest())

    def _nack(self) -> messages.Nack:
        return messages.Nack(self._draw.randrange(50))

    def _ping_request(self) -> messages.PingRequest:
        return messages.PingRequest(self._device(), self._number())

    def _suspect(self) -> messages.Suspect:
        if not self._evicts:
            return messages.Suspect(self._me, self._incarnation(), self._number(), self._me)
        return messages.Suspect(self._device(), self._incarnation(), self._number(), self._device())

    def _deleted(self) -> messages.Deleted:
        some = range(self._draw.choice((1, 100)))
        return messages.Deleted(
            [(self._device(), self._incarnation(), self._draw.choice((self._device(), "*"))) for _ in some]
        )

    def _bye(self) -> messages.Bye:
        return messages.Bye(
            self._draw.choice(("leave", "retire", "finished", "\n" * 100)), self._draw.random() < 0.5
        )

    def _stopping(self) -> messages.Stopping:
        stays = self._draw.random() < 0.5
        return messages.Stopping(self._device(), self._incarnation(), self._draw.randbytes(64), stays)

    def _observed(self) -> messages.Observed:
        value = self._draw.choice((0.0, -1.0, 3e38, float("nan"), float("inf")))
        values = struct.pack("<f", value) * self._draw.choice((1, 100, 1000))
        return messages.Observed(
            self._me, self._incarnation(), self._number() - 1, values, self._draw.randbytes(64)
        )

    def _inputs(self) -> messages.Inputs:
        value = self._draw.choice((0.0, -1.0, 1.0, 3e38, float("nan"), float("inf")))
        values = struct.pack("<f", value) * self._draw.choice((1, 100, 20_000))
        return messages.Inputs(self._device(), self._incarnation(), values)

    def _transit(self) -> messages.Transit:
        return messages.Transit(self._draw.choice((0, -1, 10**9, -(1 << 62), 1 << 62)))

    def _hello(self) -> messages.Hello:
        address, tree = self._draw.choice(BAD_ADDRESSES), {"base": "x" * 200, "s": 1.5}
        asks = self._draw.random() < 0.5
        known = self._draw.randbytes(NAME_BYTES * self._draw.choice((0, 1, MAX_RECORDS)))
        return messages.Hello(address, tree, asks, ["codec:fp16"], self._round(), known)

    def _refuse(self) -> messages.Refuse:
        return messages.Refuse(self._draw.choice(("no", "\n\x1b[31m" * 40, "x" * 512)))

    def _credit(self) -> messages.Credit:
        return messages.Credit(self._draw.choice((0, 1, 1 << 62)))

    def _window(self) -> messages.Window:
        return messages.Window(
            self._number(), self._number(), self._round(), self._number(), True, self._incarnation()
        )

    def _updates(self) -> messages.Updates:
        return messages.Updates([self._update() for _ in range(self._draw.choice((1, 1, 2, 9)))])

    def _update(self) -> messages.Update:
        total = self._draw.choice((1, 4, 100, 1 << 30))
        rows, rank = self._draw.choice(((1, 1), (64, 2), (1 << 30, 1 << 15)))
        block = (self._device(), self._incarnation(), self._group(), self._number())
        cause = self._draw.choice(("train", "transfer", "correction"))
        codec = self._draw.choice(("fp32", "fp16", "int8", "int4", "none"))
        return messages.Update(*block, self._round(), cause, codec, rows, rank, 0, total)

    def _payload(self, message: messages.Updates) -> bytes:
        total = sum(update.total for update in message.headers)
        return bytes(min(total, 100 if len(message.headers) == 1 else 1 << 20))

    # -- values out of range -----------------------------------------------------------------------------
    def _out_of_range(self, envelope: messages.Envelope) -> Frames:
        draw, name = self._draw, self._draw.choice(BAD_NAMES)
        record: dict[str, Any] = {**self._record().to_dict()}
        field = draw.choice(("device", "incarnation", "lamport", "slot", "since_round", "status", "address"))
        record[field] = name if field in ("device", "address") else draw.choice((1 << 40, -5, 1 << 62))
        digest = self._digest()
        kind, fields = draw.choice(
            [
                (messages.Gossip, (_records([record]), True, 0)),
                (messages.Suspect, (name, 0, 1, self._me)),
                (messages.PingRequest, (name, 1)),
                (messages.Deleted, (b"".join(map(msgpack.packb, (name, 0, name))),)),
                (messages.Ping, (-1, digest)),
                (
                    messages.Hello,
                    (
                        name,
                        TREE.dump({}) if TREE.dump else b"",
                        True,
                        WORDS.dump([]) if WORDS.dump else b"",
                        0,
                    ),
                ),
            ]
        )
        source = draw.choice((envelope.src, envelope.src, name))
        prefix = PREFIX.pack(
            MAGIC, VERSION, CODES[kind], envelope.seq, envelope.depart_ns, envelope.arrive_ns
        )
        return [seal(prefix + msgpack.packb([source, 0, *fields]))]


def _records(records: list[dict[str, Any]]) -> bytes:
    assert RECORDS.dump is not None
    return RECORDS.dump(records)
