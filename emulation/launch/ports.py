"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket

from emulation.launch.errors import RunFailed

PORTS = range(10_000, 30_000)  # below the range from which outgoing connections take theirs
TRIES = 4000


def free_ports(count: int) -> list[int]:
    """Random ports to which nothing is bound now. Raises RunFailed if there are fewer than `count`."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, TRIES):
        if not _is_free(port):
            continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RunFailed(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")


def loopback(port: int) -> str:
    """The endpoint of a port on the loopback interface."""
    return f"tcp://127.0.0.1:{port}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
