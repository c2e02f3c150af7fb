"""Is a device alive? Its event loop itself answers, on a socket file: a loop that hangs gives no answer.

`python -m peers.runtime.health` asks. Exit status 0: alive. With --json it prints all that the device
says. It imports nothing heavy, since containers ask often.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

    from peers.runtime.driver import Driver

VARIABLE = "UNWEFT_HEALTH"  # where the socket is
TIMEOUT_S = 3.0
MAX_BYTES = 1 << 20


def ask(path: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """What the device at this socket says of itself. Raises OSError if none answers in time."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout_s)
        link.connect(path)
        with link.makefile("rb") as answer:
            said = answer.read(MAX_BYTES)
    try:
        status = json.loads(said)
    except ValueError:
        raise OSError(f"{path}: no device answers there") from None
    return status if isinstance(status, dict) else {}


@asynccontextmanager
async def answering(path: str | None, driver: Driver) -> AsyncIterator[None]:
    """Answer whoever connects while the block runs. Raises OSError where no socket can be made."""
    if path is None:
        yield
        return

    from asyncio import start_unix_server  # the one who asks has no need of it

    async def answer(_: StreamReader, writer: StreamWriter) -> None:
        with suppress(ConnectionError):  # who asked may not have waited
            writer.write(json.dumps(status(driver)).encode())
            writer.close()
            await writer.wait_closed()

    async with await start_unix_server(answer, path):
        yield


def status(driver: Driver) -> dict[str, Any]:
    """Who the device is, how far it has come, whom it holds for alive, what its links carried so far."""
    protocol = driver.protocol
    return {
        "id": driver.spec.id,
        "incarnation": None if protocol.own is None else protocol.own.incarnation,
        "slot": None if protocol.own is None else protocol.own.slot,
        "address": driver.spec.advertise,
        "phase": protocol.phase.value,
        "round": protocol.round,
        "members": sorted(protocol.members.alive()),
        "blocks": sorted(map(str, protocol.blocks)),
        "view": protocol.members.digest().hex(),
        "security_events": dict(driver.links.security_events),
        "links": driver.accounts.to_dict(),
    }


def main() -> int:
    """For a container's health check: 0 if the device answers."""
    try:
        said = ask(os.environ.get(VARIABLE, ""))
    except OSError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    brief = f"{said.get('id')}: {said.get('phase')}, round {said.get('round')}"
    print(json.dumps(said) if "--json" in sys.argv[1:] else brief)
    return 0


if __name__ == "__main__":
    sys.exit(main())
