"""Endpoints of devices. The name of a service stands for all its containers (docs/deploy.md).

An IPv6 address is written in brackets, as in tcp://[::1]:7000. A name stands for its IPv4 addresses, or for
its IPv6 addresses if it has no others.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

import psutil

from peers.errors import InputError

ANYWHERE = ("0.0.0.0", "*", "[::]", "::")


def split(option: str, endpoint: str, own: bool = False) -> tuple[str, int]:
    """Host and port of tcp://host:port. `own`: port 0 is allowed, and stands for a free port.

    Raises InputError, which names the option, for another text.
    """
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() else -1
    if not (endpoint.startswith("tcp://") and host and colon and (0 if own else 1) <= number < 65536):
        raise InputError(f"{option}: {endpoint!r} is no endpoint; allowed: tcp://host:port")
    if (":" in host or "[" in host) and not _is_bracketed_ipv6(host):
        raise InputError(f"{option}: {endpoint!r} has no valid IPv6 address; allowed: tcp://[::1]:port")
    return host, number


def _is_bracketed_ipv6(host: str) -> bool:
    try:
        IPv6Address(host.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return False
    return host[0] == "[" and host[-1] == "]"


def resolve(endpoint: str) -> list[str]:
    """One endpoint for each address of the host, in numeric order; none while the name is unknown."""
    host, port = split("--seeds", endpoint)
    if host[0] == "[":
        return [endpoint]
    found = _addresses(host, port, socket.AF_INET) or _addresses(host, port, socket.AF_INET6)
    return [f"tcp://{bracketed(address)}:{port}" for address in sorted(found, key=ip_address)]


def _addresses(host: str, port: int, family: socket.AddressFamily) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, port, family)}
    except (socket.gaierror, UnicodeError):  # UnicodeError: a label is empty or too long
        return set()


def bracketed(address: str) -> str:
    """An address as endpoints have it."""
    return f"[{address}]" if ":" in address else address


def own(listen: str, others: Iterable[str]) -> str:
    """The endpoint at which `others` reach this device.

    A device that listens on all interfaces takes its address among `others`, the endpoints of its service.
    If it is not among them, it takes the source address of its packets to the first one.
    """
    host, port = split("--listen", listen, own=True)
    if host not in ANYWHERE:
        return listen
    local, known = local_addresses(), [split("--seeds", other)[0] for other in others]
    in_service = [address for address in known if address in local]
    return f"tcp://{in_service[0] if in_service else _source_address(known)}:{port}"


def local_addresses() -> list[str]:
    """The addresses of this machine or container, as endpoints have them."""
    return [
        bracketed(address.address)
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    ]


def _source_address(known: list[str]) -> str:
    """The source address of a packet to the first known address. No packet is sent."""
    target = known[0] if known else "192.0.2.1"  # RFC 5737: an address for documentation
    ipv6 = target[0] == "["
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target.strip("[]"), 9))
        except OSError:
            inside = "[::1]" if ipv6 else "127.0.0.1"
            same = [address for address in local_addresses() if (address[0] == "[") == ipv6]
            return next((a for a in same if a != "[::1]" and not a.startswith("127.")), inside)
        return bracketed(str(probe.getsockname()[0]))
