"""`unweft bench wire`: the cost of a message by type, and the cost of a hostile message at its receiver."""

from __future__ import annotations

import random
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import astuple

import msgpack

from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.processes import crew
from transport.wire import messages
from transport.wire.errors import WireError
from transport.wire.limits import MAX_PAYLOAD
from transport.wire.packing import PREFIX, VERSION, pack, seal, unpack

BATCH, REPETITIONS = 500, 9  # messages in one measurement, and measurements
RANDOM_MESSAGES = 20_000
ENVELOPE = messages.Envelope("d1", 0, 77, 10**15, 10**15 + 5)
PART = bytes(1 << 16)
CODES = {"Hello": 1, "Gossip": 3, "Manifest": 5}
MOST_MEMORY_MB, MOST_MS = 5.0, 10.0

_RECORD: dict[str, object] = {"device": "d1", "incarnation": 3, "public": b"k" * 32, "signature": b"s" * 64}
_PARTS = [(f"d{n // 3}", 0, ("early", "mid", "late")[n % 3], 12) for n in range(96)]  # 32 devices, 3 groups
_RECIPE = {"base": "a" * 64, "sketch": [0.5] * 64, "s": 4.0}
SAMPLES: tuple[messages.Message, ...] = (
    messages.Hello("tcp://10.0.0.1:5555", _RECIPE, True, ["int8"], -1, bytes(80)),
    messages.Refuse("another basis"),
    messages.Gossip([_RECORD] * 32, False, 7),
    messages.Updates(
        [messages.Update("d5", 0, "early", 12, 3, "train", "fp16", 3000, 8, 0, 1 << 20, 12345678)]
    ),
    messages.Manifest(4, "train", b"v" * 16, [(*part, "sent") for part in _PARTS]),
    messages.Request(_PARTS, 9),
    messages.Ping(0, b"v" * 16),
    messages.Bye("leave", True),
    messages.Window(3, 1 << 62, -2, 17, True),
    messages.Credit(1 << 21),
)

_NESTED = b"\x81\xa1k\xdc\x00\x3d" + (b"\xdc\x01\x00" + b"\x80" * 256) * 60  # maps in arrays, 16 KB


def _sealed(kind: str, *fields: object) -> list[messages.Buffer]:
    prefix = PREFIX.pack(b"uw", VERSION, CODES[kind], 0, 0, 0)
    return [seal(prefix + msgpack.packb(["d1", 0, *fields]))]


HOSTILE: dict[str, list[messages.Buffer]] = {
    "1 MB of nested maps": [seal(PREFIX.pack(b"uw", VERSION, 3, 0, 0, 0) + b"\x81\xa0" * (1 << 19))],
    "1 MB of empty maps": [
        seal(PREFIX.pack(b"uw", VERSION, 3, 0, 0, 0) + b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20))
    ],
    "a payload one byte too long": [pack(ENVELOPE, SAMPLES[3], PART)[0], b"\x80" * (MAX_PAYLOAD + 1)],
    "items that are empty arrays, as many as the cap allows": _sealed(
        "Manifest", 1, "train", b"v" * 8, b"\x90" * 260_000
    ),
    "records of nested maps, as many as the cap allows": _sealed(
        "Gossip", b"".join([msgpack.packb(b"\x81\xa0" * 500)] * 250), True, 0
    ),
    "a fingerprint of empty maps": _sealed(
        "Hello", "a", _NESTED + b"\xca\x7f\xc0\x00\x00", True, b"", 0, b""
    ),
}


class Victim:
    """Reads hostile messages in a process of its own, whose memory grows by them only."""

    def read(self, name: str) -> tuple[float, float, float]:
        """Milliseconds; peak MB of Python's allocators; MB by which the process grew."""
        bomb = HOSTILE[name]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        _refused(bomb)
        spent = time.perf_counter() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        tracemalloc.start()
        _refused(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return spent * 1e3, peak / 1e6, grown * 1024 / 1e6


def run(
    batch: int = BATCH, repetitions: int = REPETITIONS, random_messages: int = RANDOM_MESSAGES
) -> Findings:
    """Measure microseconds per message, compared with msgpack alone, and the costs of hostile messages."""
    findings = Findings("Messages: their cost, and the cost of hostile ones", "unweft bench wire")
    for message in SAMPLES:
        _measure(findings, message, batch, repetitions)
    with crew(["transport.wire.packing"]) as all_:
        for name in HOSTILE:
            costs = [all_.remote(Victim).call("read", name) for _ in range(3)]
            _hostile(findings, name, costs)
    _random(findings, random_messages)
    return findings


def _measure(findings: Findings, message: messages.Message, batch: int, repetitions: int) -> None:
    payload = PART if isinstance(message, messages.Updates) else None
    frames = pack(ENVELOPE, message, payload)
    plain = ["d1", 0, *astuple(message)]
    packed = msgpack.packb(plain)
    work: dict[str, Callable[[], object]] = {
        "msgpack alone, pack": lambda: msgpack.packb(plain),
        "pack": lambda: pack(ENVELOPE, message, payload),
        "msgpack alone, unpack": lambda: msgpack.unpackb(packed),
        "unpack": lambda: unpack(frames),
    }
    samples: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repetitions):
        for name, act in work.items():
            samples[name].append(_microseconds(act, batch))
    group = f"{type(message).__name__}, {len(frames[0])} bytes"
    for name, values in samples.items():
        against = None if name.startswith("msgpack") else f"msgpack alone, {name}"
        findings.measures.append(Measure(group, name, "us", tuple(values), against))


def _microseconds(act: Callable[[], object], batch: int) -> float:
    start = time.perf_counter()
    for _ in range(batch):
        act()
    return (time.perf_counter() - start) / batch * 1e6


def _hostile(findings: Findings, name: str, costs: Sequence[tuple[float, float, float]]) -> None:
    ms, asked_mb, grown_mb = zip(*costs, strict=True)
    size = sum(len(frame) for frame in HOSTILE[name])
    group = f"hostile: {name}, {size / 1e6:.2f} MB"
    findings.measures += [
        Measure(group, "time", "ms", ms, most=MOST_MS),
        Measure(group, "memory asked for", "MB", asked_mb, most=MOST_MEMORY_MB),
        Measure(group, "growth of the process", "MB", grown_mb, most=MOST_MEMORY_MB),
    ]


def _random(findings: Findings, count: int) -> None:
    """Random bytes. Half of the messages have a valid prefix and a valid checksum."""
    draw, accepted, crashes = random.Random(5), 0, 0
    start = time.perf_counter()
    for n in range(count):
        noise = draw.randbytes(draw.randrange(120))
        prefix = PREFIX.pack(b"uw", VERSION, draw.randrange(12), 0, 0, 0)
        frames: list[messages.Buffer] = [seal(prefix + noise) if n % 2 else noise]
        try:
            unpack(frames)
            accepted += 1
        except WireError:
            pass
        except Exception:
            crashes += 1
    each = (time.perf_counter() - start) / count * 1e6
    group = f"{count} random messages"
    findings.measures += [
        Measure(group, "accepted", "messages", (float(accepted),), most=0),
        Measure(group, "another exception than WireError", "messages", (float(crashes),), most=0),
        Measure(group, "drawing and refusing one", "us", (each,)),
    ]


def _refused(frames: Sequence[messages.Buffer]) -> None:
    try:
        unpack(frames)
    except WireError:
        return
    raise AssertionError("a hostile message was accepted")
