"""`unweft bench shaper`: the invariant of the token bucket, and its rate beside the kernel's bucket."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.processes import Remote, crew
from emulation.bench.kernel_tbf import Arrival, KernelLink, NotPossible, kernel_link
from transport.clocks.real import RealClock
from transport.links.zmq_links import ZmqLinks
from transport.shaping.outgoing import Departure, Outgoing
from transport.shaping.round_budget import Quota
from transport.shaping.shaper import Shaper
from transport.shaping.token_bucket import generated_violations
from transport.wire.limits import FRAME_BYTES
from transport.wire.packing import PREFIX, wire_bytes

CASES = 20_000  # of random traffic
RATES_BPS = (100_000, 1_000_000, 10_000_000, 100_000_000)  # bit/s
WINDOW_S, REPETITIONS = 3.0, 3
LEAST_FRAME = 1500  # bytes; on a slow link many small frames fit in the window
FRAME_S = 0.1  # longest time of a larger frame
UNLIMITED = 1 << 50
TOLERANCE = 0.01
LISTEN = "tcp://127.0.0.1:0"


class Meter:
    """The receiving device. It records the time and the wire bytes of each message."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._links = ZmqLinks("meter", LISTEN)

    def bind(self) -> str:
        self._loop.run_until_complete(self._links.start())
        return self._links.address

    def arrivals(self, seconds: float) -> list[Arrival]:
        """The arrivals within the next `seconds`."""
        return self._loop.run_until_complete(self._arrivals(seconds))

    async def _arrivals(self, seconds: float) -> list[Arrival]:
        arrived: list[Arrival] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    received = await self._links.recv()
                    arrived.append((time.monotonic_ns(), received.wire_bytes))
        except TimeoutError:
            return arrived


class Pacer:
    """The sending device: a shaper on the real clock whose queue is never empty."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._links = ZmqLinks("pacer", LISTEN)

    def connect(self, address: str) -> None:
        self._loop.run_until_complete(self._connect(address))

    async def _connect(self, address: str) -> None:
        await self._links.start()
        self._links.connect("meter", address)

    def send(self, rate_Bps: int, frame_bytes: int, seconds: float) -> None:
        self._loop.run_until_complete(self._send(rate_Bps, frame_bytes, seconds))

    async def _send(self, rate_Bps: int, frame_bytes: int, seconds: float) -> None:
        clock, quota = RealClock(), Quota(UNLIMITED)
        quota.start_round()
        shaper = Shaper(rate_Bps, frame_bytes, quota, clock.now())
        frames = (bytes(PREFIX.size), bytes(frame_bytes - PREFIX.size - 11))
        item = Outgoing("meter", "train", frames, wire_bytes(frames), len(frames[1]))
        end_ns = clock.now() + int(seconds * 1e9)
        for _ in range(3):
            shaper.queue_data(item)
        while clock.now() < end_ns:
            if await clock.reach(shaper.next_ns(clock.now())):
                for departure in shaper.pop(clock.now()):
                    self._send_and_refill(shaper, departure, item)

    def _send_and_refill(self, shaper: Shaper, departure: Departure, item: Outgoing) -> None:
        self._links.send("meter", departure.frames)
        shaper.queue_data(item)


def run(
    cases: int = CASES,
    rates_bps: Sequence[int] = RATES_BPS,
    window_s: float = WINDOW_S,
    repetitions: int = REPETITIONS,
) -> Findings:
    """Measure rates as shares of the configured rate. Both ends are on this machine."""
    findings = Findings("The shaper: its invariant, and the rate it delivers", "unweft bench shaper")
    broken = float(generated_violations(cases))
    findings.measures.append(Measure("invariant", f"violations in {cases} cases", "cases", (broken,), most=0))
    with crew([Pacer.__module__]) as all_, ExitStack() as stack:
        pacer, meter = all_.remote(Pacer), all_.remote(Meter)
        pacer.call("connect", meter.call("bind"))
        try:
            kernel = stack.enter_context(kernel_link())
        except NotPossible as error:
            kernel = None
            findings.notes.append(f"the kernel's tbf is not measured: {error}")
        for rate_bps in rates_bps:
            _measure(findings, (pacer, meter), kernel, rate_bps, window_s, repetitions)
    return findings


def _measure(
    findings: Findings,
    ends: tuple[Remote, Remote],
    kernel: KernelLink | None,
    rate_bps: int,
    window_s: float,
    repetitions: int,
) -> None:
    rate_Bps = rate_bps // 8
    frame = max(LEAST_FRAME, min(FRAME_BYTES, int(rate_Bps * FRAME_S)))
    seconds = window_s + 2 * frame / rate_Bps
    ours, theirs = [], []
    for _ in range(repetitions):
        ours.append(after_depth(_paced(*ends, rate_Bps, frame, seconds), 2 * frame) / rate_Bps)
        if kernel is not None:
            theirs.append(after_depth(kernel.arrivals(rate_Bps, 2 * frame, seconds), 2 * frame) / rate_Bps)
    low, high = 1 - TOLERANCE, 1 + TOLERANCE
    group = f"{rate_bps / 1e6:g} Mbit/s"
    note = f"frames of {frame} bytes"
    unit = "of the rate"
    findings.measures.append(Measure(group, "unweft", unit, tuple(ours), least=low, most=high, note=note))
    if theirs:
        findings.measures.append(Measure(group, "kernel tbf", unit, tuple(theirs), note="Ethernet frames"))


def _paced(pacer: Remote, meter: Remote, rate_Bps: int, frame: int, seconds: float) -> list[Arrival]:
    meter.begin("arrivals", seconds + 0.5)
    pacer.call("send", rate_Bps, frame, seconds)
    arrived: list[Arrival] = meter.result()
    return arrived


def after_depth(arrived: Sequence[Arrival], depth_bytes: int) -> float:
    """Bytes per second after the first `depth_bytes`; nan if fewer than three messages follow them."""
    left, rest = depth_bytes, deque(arrived)
    while rest and left > 0:
        left -= rest.popleft()[1]
    if len(rest) < 3:
        return float("nan")
    return sum(size for _, size in list(rest)[1:]) / (rest[-1][0] - rest[0][0]) * 1e9
