"""The hostile member of the benchmarks sends every type of message."""

from __future__ import annotations

import dataclasses

from coordinator_free.membership.signed_records import Record
from emulation.bench.harness.hostile_messages import HostileMessages
from transport.security.keys import DeviceIdentity
from transport.wire.messages import Hello
from transport.wire.packing import CODES, PREFIX


def test_every_type_of_message_is_made() -> None:
    identity = DeviceIdentity.generate()
    hello = Hello("tcp://127.0.0.1:1", {}, True, [], 0)
    source = HostileMessages(1, "d2", identity, ("early", "mid"), hello, rounds=50, slots=8)
    source.members = [dataclasses.replace(_record(identity), device=name) for name in ("d0", "d1")]
    made = {PREFIX.unpack_from(source.next_frames(0, number)[0])[2] for number in range(3000)}
    assert {kind.__name__ for kind, code in CODES.items() if code not in made} == set()


def _record(identity: DeviceIdentity) -> Record:
    return Record("d0", 0, "tcp://127.0.0.1:1", 0, 5, 5, public=identity.public)
