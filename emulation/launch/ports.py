"""Endpoints on this machine: free TCP ports of the loopback interface, and socket files."""

from __future__ import annotations

import os
import random
import secrets
import socket

import zmq

from coordinator_free import ranges
from emulation.launch import temporary_folder
from emulation.launch.errors import RunFailed
from transport.links.endpoints import LONGEST_PATH, SOCKET_FILE

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


def loopback_ports(count: int) -> list[str]:
    """Endpoints on `count` free ports. Raises RunFailed if there are fewer."""
    return [loopback(port) for port in free_ports(count)]


def socket_files(count: int) -> list[str]:
    """Endpoints of `count` new socket files in the private folder that goes with this process.

    Ports instead where libzmq has no socket files, and where the path of the folder is too long or has
    characters that no address may have.
    """
    start = f"{temporary_folder.path()}/{secrets.token_hex(4)}-"
    fits = len(os.fsencode(f"{start}{count}")) <= LONGEST_PATH and ranges.address(start)
    if not zmq.has("ipc") or not fits:
        return loopback_ports(count)
    return [f"{SOCKET_FILE}{start}{n}" for n in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
