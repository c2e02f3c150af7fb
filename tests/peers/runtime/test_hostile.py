"""Hostile input at devices that live: no crash, nothing changes, all of it is counted, and some is logged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.conversations import conversation
from tests.support.live_devices import Device, Outcome, live, send_all, until
from tests.support.live_links import NEW, both, device, listed
from tests.support.relay import Relay
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import NetworkKeys
from transport.wire.messages import (
    Buffer,
    Bye,
    Credit,
    Envelope,
    Gossip,
    Hello,
    Manifest,
    Message,
    Ping,
    Request,
    Update,
    Updates,
    Window,
)
from transport.wire.packing import CHECKSUM, pack, seal, unpack

pytestmark = pytest.mark.timeout(120)  # ten thousand messages on a loaded machine
Frames = list[bytes]
KEYS = {"d0": both(), "d1": both()}
PORT_SCAN = b"GET / HTTP/1.1\r\nHost: d0\r\n\r\n"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)  # ZMTP 3.1


@cache
def undisturbed(mode: str = "average") -> Outcome:
    """What two devices that nobody attacks end with."""
    with TemporaryDirectory() as folder:
        return live(Path(folder), mode=mode)


def test_undisturbed_devices_refuse_nothing_and_keys_change_nothing(tmp_path: Path) -> None:
    assert undisturbed().refused == {"d0": 0, "d1": 0}
    with_keys = live(tmp_path, keys=KEYS)
    assert with_keys.result == undisturbed().result
    assert with_keys.events == {"d0": {}, "d1": {}}


# -- without the key -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", [None, both(NEW)], ids=["no key", "wrong key"])
def test_a_stranger_learns_nothing_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mine: NetworkKeys | None
) -> None:
    async def attack(devices: Mapping[str, Device]) -> None:
        victim = devices["d0"].links
        before = victim.connections["established"]
        async with device("d1", mine) as stranger:
            stranger.connect("d0", victim.address)
            for message in every_kind("d1"):
                stranger.send("d0", message)
            await until(lambda: victim.security_events.total() >= 3)
            assert victim.connections["established"] == before
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stranger.recv(), 0.1)

    outcome = live(tmp_path, attack, KEYS)
    assert outcome.result == undisturbed().result
    assert sum(outcome.events["d0"].values()) >= 3 and outcome.events["d1"] == {}
    assert all(kind.startswith("inbox_") for kind in outcome.events["d0"])
    assert "the handshake of a connection to the inbox failed" in caplog.text


@pytest.mark.parametrize("first", [PORT_SCAN, GREETING, b""], ids=["http", "zmtp", "silence"])
def test_a_stranger_is_told_no_more_than_that_this_speaks_curve(tmp_path: Path, first: bytes) -> None:
    heard = []

    async def attack(devices: Mapping[str, Device]) -> None:
        heard.append(await conversation(devices["d0"].links.address, first))

    outcome = live(tmp_path, attack, KEYS)
    assert outcome.result == undisturbed().result
    (told,) = heard
    # ZMTP's greeting or the beginning of it: signature, version, mechanism, role
    assert (b"\xff" + bytes(7) + b"\x01\x7f").startswith(told[:10]) and len(told) <= 64
    assert told[12:32] in (b"", b"CURVE".ljust(20, b"\0")) and set(told[32:]) <= {0, 1}


def test_a_member_cannot_speak_as_another_where_ids_are_bound(tmp_path: Path) -> None:
    keys = listed("d0", "d1", "d2")

    async def attack(devices: Mapping[str, Device]) -> None:
        async with device("d1", keys["d2"]) as liar:
            liar.connect("d0", devices["d0"].links.address)
            await send_all(liar, "d0", every_kind("d1"))
            await until(lambda: devices["d0"].refused() == len(every_kind("d1")))

    outcome = live(tmp_path, attack, keys)
    assert outcome.result == undisturbed().result
    assert outcome.events["d0"] == {"unbound": len(every_kind("d1"))}


def test_a_recorded_connection_opens_nothing(tmp_path: Path) -> None:
    async def attack(devices: Mapping[str, Device], way: Relay) -> None:
        victim = devices["d0"].links
        before = victim.connections["established"]
        for _ in range(3):
            await way.replay(victim.address)
        await until(lambda: victim.security_events.total() >= 3)
        assert victim.connections["established"] == before

    outcome = live(tmp_path, attack_on_the_way=attack, keys=KEYS)
    assert outcome.result == undisturbed().result
    assert outcome.events["d0"]["inbox_protocol"] >= 3


# -- in the clear --------------------------------------------------------------------------------------


class Tapped(ZmqLinks):
    """Links that keep what they send to d0, as somebody on the way could."""

    seen: list[Frames]

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        if self.device == "d1" and peer == "d0":
            self.seen.append([bytes(frame) for frame in frames])
        return super().send(peer, frames)


def tapped() -> tuple[list[Frames], type[ZmqLinks]]:
    seen: list[Frames] = []
    return seen, type("TappedHere", (Tapped,), {"seen": seen})


def test_ten_thousand_random_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of them random bytes, half of them real messages with something altered, all in d1's name."""
    seen, links = tapped()
    draw = random.Random(11)

    async def attack(devices: Mapping[str, Device]) -> None:
        victim, before = devices["d0"], devices["d0"].state()
        messages = [random_bytes(draw) for _ in range(5000)]
        messages += [altered(draw, draw.choice(seen)) for _ in range(5000)]
        draw.shuffle(messages)
        async with device("d1") as evil:
            evil.connect("d0", victim.links.address)
            await send_all(evil, "d0", messages)
            await until(lambda: victim.refused() == 10_000)
        assert victim.state() == before

    outcome = live(tmp_path, attack, make=links)
    assert outcome.result == undisturbed().result
    assert outcome.refused == {"d0": 10_000, "d1": 0}
    assert sum(outcome.events["d0"].values()) == 10_000
    assert set(outcome.events["d0"]) == {"malformed", "replayed"}
    assert len(caplog.records) < 40  # nobody fills the disk


def test_forged_messages_of_a_stranger(tmp_path: Path) -> None:
    """Altered, but with a checksum that fits: what a stranger can do where nothing is encrypted."""
    draw = random.Random(12)
    valid = every_kind("x1")

    async def attack(devices: Mapping[str, Device]) -> None:
        victim, before = devices["d0"], devices["d0"].state()
        messages = [forged(draw, draw.choice(valid)) for _ in range(3000)]
        async with device("x1") as evil:
            evil.connect("d0", victim.links.address)
            await send_all(evil, "d0", messages)
            await until(lambda: victim.refused() == 3000)
        assert victim.state() == before

    outcome = live(tmp_path, attack)
    assert outcome.result == undisturbed().result


def test_a_crowd_of_strangers_takes_no_sockets_without_end(tmp_path: Path) -> None:
    """Hundreds of names, and one that is at another address each time: a link to each would take them all."""
    limit = 1 + 2 * 8  # seeds, and twice the slots of `small_config`

    async def attack(devices: Mapping[str, Device]) -> None:
        victim, count = devices["d0"], 0
        for name in [*["y"] * 3 * limit, *(f"x{i}" for i in range(3 * limit))]:
            async with device(name) as evil:
                evil.connect("d0", victim.links.address)
                evil.send("d0", pack(Envelope(name, 0, count), hello(f"tcp://127.0.0.1:{20_000 + count}")))
                count += 1
                await until(lambda: victim.refused() == count)  # noqa: B023
        assert len(victim.driver.protocol.peers) == limit

    outcome = live(tmp_path, attack)
    assert outcome.adapters == undisturbed().adapters
    lines = (tmp_path / "devices" / "d0" / "events.jsonl").read_text().splitlines()
    assert sum('"refused"' in line for line in lines) <= limit


def hello(address: str) -> Hello:
    """Of one whose bases are others."""
    return Hello(address, {}, True, [], 0)


@pytest.mark.parametrize("mode", ["average", "newest"])
def test_replayed_messages(tmp_path: Path, mode: str) -> None:
    """All that d1 has said so far is said again in its name, twice, over a new connection."""
    seen, links = tapped()
    replayed = []

    async def attack(devices: Mapping[str, Device]) -> None:
        victim = devices["d0"]
        replayed.extend(seen * 2)
        async with device("d1") as evil:
            evil.connect("d0", victim.links.address)
            await send_all(evil, "d0", replayed)
            await until(lambda: victim.refused() == len(replayed))

    outcome = live(tmp_path, attack, make=links, mode=mode)
    assert outcome.result == undisturbed(mode).result
    assert any(isinstance(unpack(message)[1], Updates) for message in replayed)
    assert outcome.events["d0"] == {"replayed": len(replayed)}


class Faulty(ZmqLinks):
    """A way from d1 to d0 on which every second message of updates, one a round, gets a byte altered, or, for
    comparison, is lost."""

    alters: bool
    count = 0

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        update = len(frames) == 2 and (self.device, peer) == ("d1", "d0")
        if not update or not self._second():
            return super().send(peer, frames)
        if not self.alters:
            return True
        draw = random.Random(self.count)
        which = self.count // 2 % 2
        return super().send(peer, [flipped(draw, f) if i == which else f for i, f in enumerate(frames)])

    def _second(self) -> bool:
        type(self).count += 1
        return self.count % 2 == 0


@pytest.mark.parametrize("mode", ["average", "newest"])
def test_an_altered_update_is_as_good_as_a_lost_one(tmp_path: Path, mode: str) -> None:
    class Losing(Faulty):
        alters = False

    class Altering(Faulty):
        alters = True

    lost = live(tmp_path / "lost", make=Losing, mode=mode)
    damaged = live(tmp_path / "damaged", make=Altering, mode=mode)
    assert damaged.result == lost.result and damaged.result != undisturbed(mode).result
    assert damaged.events["d0"] == {"malformed": Altering.count // 2} and Altering.count >= 6


# -- messages ------------------------------------------------------------------------------------------


def every_kind(source: str) -> list[Frames]:
    """One of each kind but Hello, with numbers that are not used up: whoever may speak is listened to."""
    item = (source, 0, "early")
    update = Update(*item, 7, 3, "train", "fp16", 8, 2, 0, 32, xxh3=0)
    messages: list[Message] = [
        Gossip([{"device": source, "incarnation": 0}], True, 3),
        Manifest(3, "train", b"v" * 16, [(*item, 7, "sent")]),
        Request([(*item, -1)], 3),
        Ping(3, b"v" * 16),
        Bye("leave"),
        Window(3, 1 << 40, 3, 17, True),
        Credit(1 << 20),
        Updates([update]),
    ]
    found = []
    for number, message in enumerate(messages):
        payload = bytes(32) if isinstance(message, Updates) else None
        frames = pack(Envelope(source, 0, (1 << 62) + number), message, payload)
        found.append([bytes(frame) for frame in frames])
    return found


def random_bytes(draw: random.Random) -> Frames:
    return [draw.randbytes(draw.randrange(300)) for _ in range(draw.randrange(1, 6))]


def altered(draw: random.Random, message: Frames) -> Frames:
    """A byte changed, some inserted or cut out, in one of the frames."""
    at = draw.randrange(len(message))
    return [mutated(draw, frame) if i == at else frame for i, frame in enumerate(message)]


def forged(draw: random.Random, message: Frames) -> Frames:
    header, *rest = message
    return [seal(mutated(draw, header[: -CHECKSUM.size])), *rest]


def mutated(draw: random.Random, frame: bytes) -> bytes:
    while True:
        at, cut = draw.randrange(len(frame)), draw.choice((0, 1, 1, 1, 4))
        changed = frame[:at] + draw.randbytes(draw.choice((0, 1, 1, 1, 4))) + frame[at + cut :]
        if changed != frame:
            return changed


def flipped(draw: random.Random, frame: Buffer) -> bytes:
    changed = bytearray(frame)
    changed[draw.randrange(len(changed))] ^= draw.randrange(1, 256)
    return bytes(changed)
