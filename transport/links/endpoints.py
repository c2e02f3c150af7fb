"""Endpoints of links: which ones are socket files, and which ones a link may connect to.

`tcp://host:port` reaches any machine. `ipc:///folder/name` is a socket file, for the processes of one
launcher. Its folder is private (mode 0700), so only processes of the same user can connect to it or take its
place. The kernel hands its bytes from process to process, and nobody else sees them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

SOCKET_FILE = "ipc://"
LONGEST_PATH = 107  # bytes of the path of a socket file (sun_path in unix(7), less its last zero)


def is_socket_file(endpoint: str) -> bool:
    return endpoint.startswith(SOCKET_FILE)


def reachable_from(listen: str, address: str) -> bool:
    """Whether a device that listens there may connect to `address`, which anyone may have named.

    It connects within its own scheme only, and from a socket file only to files of the same folder: a device
    shows its password to the process behind the file.
    """
    if is_socket_file(listen):
        return address.rpartition("/")[0] == listen.rpartition("/")[0]
    return address.partition("://")[0] == listen.partition("://")[0]


def check_private(endpoint: str) -> None:
    """Raises PermissionError if other users may enter or own the folder of a socket file."""
    folder = Path(endpoint.removeprefix(SOCKET_FILE)).parent
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is no folder of this user; socket files need one with mode 0700")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"other users may enter {folder}; a folder of socket files has mode 0700")
