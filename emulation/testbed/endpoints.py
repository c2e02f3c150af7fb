"""Endpoints of a service: its name stands for all its containers, this one among them (docs/deploy.md)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

import psutil

from peers.errors import InputError

ANYWHERE = ("0.0.0.0", "*", "[::]", "::")


def split(option: str, endpoint: str) -> tuple[str, int]:
    """Host and port of tcp://host:port. Raises InputError, which names the option, for anything else."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    good = endpoint.startswith("tcp://") and host and colon and port.isdecimal() and 0 < int(port) < 65536
    if not good:
        raise InputError(f"{option}: {endpoint!r} is no endpoint; allowed: tcp://host:port")
    return host, int(port)


def resolve(endpoint: str) -> list[str]:
    """One endpoint for each IPv4 address of its host, in numeric order; none while nobody has that name."""
    host, port = split("--seeds", endpoint)
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, socket.AF_INET)}
    except socket.gaierror:
        return []
    return [f"tcp://{address}:{port}" for address in sorted(found, key=ip_address)]


def own(listen: str, others: Iterable[str]) -> str:
    """Where others reach a device that listens on every interface: in the network that it shares with them.

    Of its addresses the one that a service's name stands for, else the one it would call the first from.
    """
    host, port = split("--listen", listen)
    if host not in ANYWHERE:
        return listen
    here, known = local_addresses(), [split("--seeds", other)[0] for other in others]
    named = [address for address in known if address in here]
    return f"tcp://{named[0] if named else _route(known)}:{port}"


def local_addresses() -> list[str]:
    """IPv4 addresses of this machine, or of this container."""
    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]


def _route(known: list[str]) -> str:
    """The address that a packet would come from; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((known[0] if known else "192.0.2.1", 9))  # RFC 5737: an address that is nobody's
        except OSError:
            outside = [address for address in local_addresses() if not address.startswith("127.")]
            return outside[0] if outside else "127.0.0.1"
        return str(probe.getsockname()[0])
