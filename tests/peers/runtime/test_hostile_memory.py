"""A hostile message of 1 MB at a device process: what it costs in memory, seen from outside."""

from __future__ import annotations

import asyncio
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulation.launch.ports import free_ports
from tests.support.bombs import BOMBS
from tests.support.command_line import QUICK
from tests.support.conversations import conversation
from tests.support.live_devices import send_all, until
from tests.support.live_links import device
from transport.links.zmq_links import ZmqLinks
from transport.wire.limits import MAX_PAYLOAD

pytestmark = [
    pytest.mark.timeout(180),  # a process that imports torch
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
PATIENCE_S = 100.0
LIMIT_BYTES = 5 << 20
SETTINGS = ("keys.enabled=false", "devices.count=2", "event=[]", "membership.settle_s=1000.0")
FITTING = {name: bomb for name, bomb in BOMBS.items() if max(map(len, bomb)) <= MAX_PAYLOAD}


@contextmanager
def waiting_device(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A device in the clear that waits for a second one: it does nothing but listen."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    flags = {"--id": "d0", "--listen": address, "--scenario": QUICK, "--out": str(folder)}
    words = [word for pair in flags.items() for word in pair]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    unweft = str(Path(sys.executable).with_name("unweft"))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([unweft, "device", *words], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        events = folder / "devices" / "d0" / "events.jsonl"
        while not (events.exists() and '"slot"' in events.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()


def status_bytes(process: subprocess.Popen[bytes], field: str) -> int:
    """VmRSS: memory in use; VmHWM: the most since `forget_peak`."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(process: subprocess.Popen[bytes]) -> None:
    try:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the kernel does not let a peak be reset")


class Bomber:
    """Sends in the name of a stranger. A device's log tells of the 1st, 2nd, 4th, ... refused one only."""

    def __init__(self, evil: ZmqLinks, log: Path) -> None:
        self._evil, self._log, self._sent = evil, log, 0

    async def send(self, message: list[bytes]) -> None:
        """Returns when the message has been refused."""
        self._sent += 1
        fill = -self._sent % (1 << (self._sent - 1).bit_length())
        await send_all(self._evil, "d0", [message, *[[b"x"]] * fill])
        self._sent += fill
        await until(lambda: f"(malformed, {self._sent} so far)" in self._log.read_text())


async def declare(address: str, size: int) -> None:
    """Shake hands as ZMTP 3.0 has it without encryption, and announce a frame of so many bytes."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    command = struct.pack(">BB", 4, len(ready)) + ready
    frame = struct.pack(">BQ", 2, size) + bytes(1000)
    await conversation(address, greeting + command + frame)


def test_a_hostile_message_costs_little_memory(tmp_path: Path) -> None:
    async def attack(process: subprocess.Popen[bytes], address: str) -> dict[str, int]:
        raised = {}
        async with device("x1") as evil:
            evil.connect("d0", address)
            bomber = Bomber(evil, tmp_path / "log.txt")
            await bomber.send([b"the first costs buffers that stay"])
            for name, bomb in FITTING.items():
                forget_peak(process)
                before = status_bytes(process, "VmRSS")
                await bomber.send(bomb)
                raised[name] = status_bytes(process, "VmHWM") - before
            forget_peak(process)
            before = status_bytes(process, "VmRSS")
            await declare(address, 1 << 40)
            await bomber.send([b"still there"])
            raised["a frame of 1 TB, announced"] = status_bytes(process, "VmHWM") - before
        return raised

    with waiting_device(tmp_path) as (process, address):
        raised = asyncio.run(attack(process, address))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    print("".join(f"{name}: {size / 1e6:.2f} MB\n" for name, size in raised.items()))
    assert len(raised) >= 10 and max(raised.values()) < LIMIT_BYTES
