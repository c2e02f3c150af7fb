"""A new network namespace, in which the kernel counts the traffic of one run only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class NoNamespace(Exception):
    """The namespace cannot be created. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The received traffic of an interface: bytes with Ethernet headers, and packets."""

    bytes: int
    packets: int

    def since(self, before: Traffic) -> Traffic:
        return Traffic(self.bytes - before.bytes, self.packets - before.packets)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace. `command(...)` wraps a command so that it runs inside."""

    name: str

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *arguments]

    def traffic(self, interface: str = "lo") -> Traffic:
        """The counters of /proc/net/dev."""
        text = subprocess.run(
            self.command("cat", "/proc/net/dev"), capture_output=True, text=True, check=True
        )
        line = next(line for line in text.stdout.splitlines() if line.strip().startswith(f"{interface}:"))
        received, packets = line.partition(":")[2].split()[:2]
        return Traffic(int(received), int(packets))


@contextmanager
def namespace(name: str = "unweft-bench") -> Iterator[Namespace]:
    """Create a namespace with its loopback up, and delete it at the end. Raises NoNamespace."""
    if os.geteuid() or shutil.which("ip") is None:
        raise NoNamespace("a network namespace needs root and iproute2")
    made = Namespace(f"{name}-{os.getpid()}")
    _ip("netns", "add", made.name)
    try:
        _ip("-n", made.name, "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", made.name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespace(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
