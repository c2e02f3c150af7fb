"""The token bucket of the kernel (tc tbf) on a pair of virtual interfaces, one in a network namespace.

Needs root and the tools `ip` and `tc`. All that it creates is removed at the end of the `with` block.
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
NEAR, FAR, PORT = "198.18.77.1", "198.18.77.2", 9000  # from the address block for benchmarks (RFC 2544)
DATAGRAM = 1472  # bytes: the largest UDP payload of an Ethernet frame
FRAME = DATAGRAM + 42  # with UDP, IP and Ethernet headers, as tbf counts
Arrival = tuple[int, int]  # monotonic ns, bytes


class NotPossible(Exception):
    """The kernel link cannot be created. The message gives the reason."""


class KernelLink:
    """A one-way link through a tbf."""

    def __init__(self, device: str, out: socket.socket, into: socket.socket) -> None:
        self._device, self._out, self._into = device, out, into

    def arrivals(self, rate_Bps: int, burst_bytes: int, seconds: float) -> list[Arrival]:
        """Send at the full rate of the bucket for about `seconds`. Returns time and bytes of each arrival."""
        bucket = f"tbf rate {8 * rate_Bps}bit burst {max(burst_bytes, 2 * FRAME)}b limit 4mb"
        _run("tc", "qdisc", "add", "dev", self._device, "root", *bucket.split())
        try:
            return self._send_and_receive(seconds)
        finally:
            _run("tc", "qdisc", "del", "dev", self._device, "root")  # with its queue
            self._drain()

    def _send_and_receive(self, seconds: float) -> list[Arrival]:
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
        """Discard the datagrams that are left, which do not belong to the next measurement."""
        self._into.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            while True:
                self._into.recv(DATAGRAM)

    def _send(self, end: float) -> None:
        """Send until `end`. `send` blocks while the bucket delays datagrams, so that none is dropped."""
        datagram = bytes(DATAGRAM)
        while time.monotonic() < end:
            try:
                self._out.send(datagram)
            except TimeoutError:
                continue


@contextmanager
def kernel_link() -> Iterator[KernelLink]:
    """A link through a tbf. Raises NotPossible."""
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
    """A UDP socket in a namespace. The thread enters the namespace to create it and then returns."""
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
