"""`unweft bench transport`: goodput of full tensors from one device process to another over loopback."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from emulation.bench.harness.ends import Checks, GlooEnd, LinksEnd, RawEnd
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.processes import Crew, Remote, crew
from transport.security.keys import NetworkKeys

SIZES = (1 << 16, 1 << 18, 1 << 20, 1 << 22)  # bytes of a tensor, fp32
MOVED_BYTES = 64 << 20  # in one repetition
REPETITIONS = 17
RAW, RAW_CURVE = "raw pyzmq", "raw pyzmq, CURVE"


class Contender(NamedTuple):
    """A sender and a receiver, the reference that they are compared with, and the least ratio required."""

    name: str
    sender: Remote
    receiver: Remote
    reference: str | None = None
    least: float | None = None


def run(
    sizes: tuple[int, ...] = SIZES, moved_bytes: int = MOVED_BYTES, repetitions: int = REPETITIONS
) -> Findings:
    """Measure MB/s of fp32 payload from the first encode to the last decode, on one link of this machine."""
    findings = Findings("Goodput of full tensors, device to device, unshaped", "unweft bench transport")
    with crew([LinksEnd.__module__]) as all_, tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(all_, Path(folder))
        for size in sizes:
            _measure(findings, contenders, size, max(1, moved_bytes // size), repetitions)
    return findings


def _contenders(crew: Crew, folder: Path) -> list[Contender]:
    keys = NetworkKeys.generate()
    links = [
        ("unweft, checks off", None, Checks(checksum=False, finite=False), RAW, 0.8),
        ("unweft, all checks", None, Checks(), RAW, 0.4),
        ("unweft, CURVE", keys, Checks(checksum=False), RAW_CURVE, 0.7),
    ]
    found = [Contender(RAW, *_bound(crew.remote(RawEnd, None), crew.remote(RawEnd, None)))]
    found += [Contender(RAW_CURVE, *_bound(crew.remote(RawEnd, keys), crew.remote(RawEnd, keys)), RAW)]
    for name, key, checks, reference, least in links:
        names = ("sender", "receiver")
        pair = (crew.remote(LinksEnd, mine, peer, key, checks) for mine, peer in (names, names[::-1]))
        found.append(Contender(name, *_bound(*pair), reference, least))
    gloo = [crew.remote(GlooEnd, rank, folder / "store") for rank in (0, 1)]
    for end in gloo:
        end.begin("open")
    for end in gloo:
        end.result()
    return [*found, Contender("gloo send/recv", gloo[0], gloo[1], RAW)]


def _bound(sender: Remote, receiver: Remote) -> tuple[Remote, Remote]:
    to, back = receiver.call("bind"), sender.call("bind")
    sender.call("connect", to)
    receiver.call("connect", back)
    return sender, receiver


def _measure(
    findings: Findings, contenders: list[Contender], size: int, count: int, repetitions: int
) -> None:
    group = f"{size >> 10} KiB"
    rates: dict[str, list[float]] = {c.name: [] for c in contenders}
    wire: dict[str, float] = {}
    for contender in contenders:
        _once(contender, size, max(1, count // 4))  # connections, page faults, caches
    for _ in range(repetitions):
        for contender in contenders:
            seconds, taken = _once(contender, size, count)
            rates[contender.name].append(size * count / seconds / 1e6)
            wire[contender.name] = taken / (size * count)
    for c in contenders:
        samples = tuple(rates[c.name])
        findings.measures.append(Measure(group, c.name, "MB/s", samples, c.reference, c.least))
    for name in ("unweft, all checks", "unweft, CURVE"):
        what = f"wire / payload, {name.partition(', ')[2]}"
        findings.measures.append(Measure(group, what, "bytes/byte", (wire[name],), most=1.02))


def _once(contender: Contender, size: int, count: int) -> tuple[float, int]:
    """Seconds from the first encode to the last decode; bytes on the wire."""
    contender.receiver.begin("receive", size, count)
    start_ns: int = contender.sender.call("send", size, count)
    at_ns, taken = contender.receiver.result()
    return (at_ns - start_ns) / 1e9, taken
