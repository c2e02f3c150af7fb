"""Endpoints of devices. The name of a service stands for all its containers (docs/deploy.md)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

import psutil

from peers.errors import InputError

ANYWHERE = ("0.0.0.0", "*", "[::]", "::")


def split(option: str, endpoint: str) -> tuple[str, int]:
    """Host and port of tcp://host:port. Raises InputError, which names the option, for another text."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    good = endpoint.startswith("tcp://") and host and colon and port.isdecimal() and 0 < int(port) < 65536
    if not good:
        raise InputError(f"{option}: {endpoint!r} is no endpoint; allowed: tcp://host:port")
    return host, int(port)


def resolve(endpoint: str) -> list[str]:
    """One endpoint for each IPv4 address of the host, in numeric order; none while the name is unknown."""
    host, port = split("--seeds", endpoint)
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, socket.AF_INET)}
    except socket.gaierror:
        return []
    return [f"tcp://{address}:{port}" for address in sorted(found, key=ip_address)]


def own(listen: str, others: Iterable[str]) -> str:
    """The endpoint at which `others` reach this device.

    A device that listens on all interfaces takes its address among `others`, the endpoints of its service.
    If it is not among them, it takes the source address of its packets to the first one.
    """
    host, port = split("--listen", listen)
    if host not in ANYWHERE:
        return listen
    local, known = local_addresses(), [split("--seeds", other)[0] for other in others]
    in_service = [address for address in known if address in local]
    return f"tcp://{in_service[0] if in_service else _source_address(known)}:{port}"


def local_addresses() -> list[str]:
    """The IPv4 addresses of this machine or container."""
    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]


def _source_address(known: list[str]) -> str:
    """The source address of a packet to the first known address. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((known[0] if known else "192.0.2.1", 9))  # RFC 5737: an address for documentation
        except OSError:
            outside = [address for address in local_addresses() if not address.startswith("127.")]
            return outside[0] if outside else "127.0.0.1"
        return str(probe.getsockname()[0])
