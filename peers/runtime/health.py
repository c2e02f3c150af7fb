"""Health check of a device. Its event loop answers on a socket file, so a loop that hangs gives no answer.

`python -m peers.runtime.health` asks; exit status 0 means that the device answered. With --json it prints the
whole answer. The module imports nothing heavy, because containers run it often.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.errors import InputError

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

VARIABLE = "UNWEFT_HEALTH"  # environment variable with the path of the socket file
TIMEOUT_S = 3.0
MAX_BYTES = 1 << 20
LONGEST_PATH = 107  # bytes of the path of a socket file


def check_path(path: str) -> None:
    """Raises InputError if no socket file can be made at this path."""
    file, size, why = Path(path), len(os.fsencode(path)), ""
    if not 0 < size <= LONGEST_PATH or "\0" in path:
        why = f"the path has {size} bytes"
    elif not file.absolute().parent.is_dir():
        why = f"there is no folder {file.absolute().parent}"
    elif not os.access(file.absolute().parent, os.W_OK):
        why = f"the folder {file.absolute().parent} cannot be written to"
    elif file.exists() and not file.is_socket():
        why = "another file is there"
    if why:
        allowed = f"a path of 1 to {LONGEST_PATH} bytes, in a folder that can be written to"
        raise InputError(f"{VARIABLE}: {path!r}: {why}; allowed: {allowed}")


def ask(path: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The status of the device at this socket file. Raises OSError if none answers within `timeout_s`."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout_s)
        link.connect(path)
        with link.makefile("rb") as answer:
            text = answer.read(MAX_BYTES)
    try:
        status = json.loads(text)
    except ValueError:
        raise OSError(f"{path}: no device answers there") from None
    return status if isinstance(status, dict) else {}


@asynccontextmanager
async def answering(path: str | None, status: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Answer each connection with `status()` while the context is open. `path` None: answer nobody.

    Raises OSError if the socket file cannot be made.
    """
    if path is None:
        yield
        return

    from asyncio import start_unix_server  # only the answering side needs it

    async def answer(_: StreamReader, writer: StreamWriter) -> None:
        with suppress(ConnectionError):  # the asking process may have closed the connection
            writer.write(json.dumps(status()).encode())
            writer.close()
            await writer.wait_closed()

    async with await start_unix_server(answer, path):
        yield


def main() -> int:
    """The health check of a container: exit status 0 if the device answers, else 1."""
    try:
        status = ask(os.environ.get(VARIABLE, ""))
    except OSError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    brief = f"{status.get('id')}: {status.get('phase')}, round {status.get('round')}"
    print(json.dumps(status) if "--json" in sys.argv[1:] else brief)
    return 0


if __name__ == "__main__":
    sys.exit(main())
