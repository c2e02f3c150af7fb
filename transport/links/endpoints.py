"""Endpoints of links: which ones reach this machine only, and which ones a link may connect to.

`tcp://host:port` reaches any machine. `ipc:///folder/name` is a socket file, for the processes of one
launcher. Its folder is private (mode 0700), so only processes of the same user can connect to it or take its
place. The kernel hands its bytes from process to process, and nobody else sees them.
"""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

SOCKET_FILE = "ipc://"
LONGEST_PATH = 107  # bytes of the path of a socket file (sun_path in unix(7), less its last zero)


def is_socket_file(endpoint: str) -> bool:
    return endpoint.startswith(SOCKET_FILE)


def stays_on_host(endpoint: str) -> bool:
    """Whether messages to an endpoint never leave the memory of this machine. A host name may: False."""
    if is_socket_file(endpoint):
        return True
    host = endpoint.partition("://")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable_from(listen: str, address: str) -> bool:
    """Whether a device that listens there may connect to `address`, which anyone may have named.

    It connects within its own scheme only, and from a socket file only to files of the same folder: a device
    shows its password to the process behind the file.
    """
    if is_socket_file(listen):
        return address.rpartition("/")[0] == listen.rpartition("/")[0]
    return address.partition("://")[0] == listen.partition("://")[0]


def check_private(endpoint: str) -> None:
    """Raises PermissionError if other users may enter the folder of a socket file."""
    folder = Path(endpoint.removeprefix(SOCKET_FILE)).parent
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise PermissionError(f"other users may enter {folder}; a folder of socket files has mode 0700")
