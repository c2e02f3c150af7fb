"""The kernel's own token bucket (tc tbf) on a pair of virtual interfaces, one end in a network namespace.

Needs root and the tools `ip` and `tc`. What it made is gone when its `with` block is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000  # of linux/sched.h
NEAR, FAR, PORT = "198.18.77.1", "198.18.77.2", 9000  # of the block for benchmarks (RFC 2544)
DATAGRAM = 1472  # bytes: what fits in an Ethernet frame ...
FRAME = DATAGRAM + 42  # ... of so many with UDP's, IP's and Ethernet's headers, as tbf counts them
Arrival = tuple[int, int]  # monotonic ns, bytes


class NotPossible(Exception):
    """Why there is no such bucket here."""


class KernelLink:
    """A one-way link through a tbf."""

    def __init__(self, device: str, out: socket.socket, into: socket.socket) -> None:
        self._device, self._out, self._into = device, out, into

    def arrivals(self, rate_Bps: int, burst_bytes: int, seconds: float) -> list[Arrival]:
        """Send as fast as the bucket lets through for about `seconds`, and say what arrived when."""
        bucket = f"tbf rate {8 * rate_Bps}bit burst {max(burst_bytes, 2 * FRAME)}b limit 4mb"
        _run("tc", "qdisc", "add", "dev", self._device, "root", *bucket.split())
        try:
            return self._through(seconds)
        finally:
            _run("tc", "qdisc", "del", "dev", self._device, "root")  # and with it what waits there
            self._drain()

    def _through(self, seconds: float) -> list[Arrival]:
        self._into.settimeout(2.0)
        end = time.monotonic() + seconds
        sending = threading.Thread(target=self._send, args=(end,), name="tbf sender")
        sending.start()
        arrived = []
        while time.monotonic() < end:
            try:
                size = len(self._into.recv(DATAGRAM))
            except TimeoutError:
                break
            arrived.append((time.monotonic_ns(), size + FRAME - DATAGRAM))
        sending.join()
        return arrived

    def _drain(self) -> None:
        """What came in is not of the next run; nothing more does after a moment."""
        self._into.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            while True:
                self._into.recv(DATAGRAM)

    def _send(self, end: float) -> None:
        """What the bucket holds back fills the socket's buffer, and then `send` waits: nothing is dropped."""
        datagram = bytes(DATAGRAM)
        while time.monotonic() < end:
            try:
                self._out.send(datagram)
            except TimeoutError:
                continue


@contextmanager
def kernel_link() -> Iterator[KernelLink]:
    """Raises NotPossible."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NotPossible("a network namespace needs root")
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise NotPossible(f"{' and '.join(missing)} not found")
    space, near, far = f"unweft-{os.getpid()}", f"uw{os.getpid()}a", f"uw{os.getpid()}b"
    _run("ip", "netns", "add", space)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        _run("ip", "addr", "add", f"{NEAR}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        for command in (f"addr add {FAR}/30 dev {far}", f"link set {far} up"):
            _run("ip", "-n", space, *command.split())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out, _socket_in(space) as into:
            out.settimeout(0.2)
            out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            out.connect((FAR, PORT))
            into.bind((FAR, PORT))
            yield KernelLink(near, out, into)
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True, timeout=10)
        subprocess.run(["ip", "netns", "del", space], capture_output=True, timeout=10)


def _socket_in(space: str) -> socket.socket:
    """A socket belongs to the namespace in which it is made; a thread can be in another one for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{space}").open() as there, Path("/proc/thread-self/ns/net").open() as here:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise NotPossible(f"setns: {os.strerror(ctypes.get_errno())}")
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            libc.setns(here.fileno(), _CLONE_NEWNET)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotPossible(f"{' '.join(command[:3])}: {error}") from None
    if done.returncode:
        raise NotPossible(f"{' '.join(command[:3])}: {done.stderr.strip()}")
