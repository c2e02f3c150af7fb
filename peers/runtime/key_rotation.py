"""Key rotation on a live device: SIGHUP makes it read its keys again (docs/security.md)."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from transport.links.zmq_links import ZmqLinks
from transport.security.keys import load

log = logging.getLogger("unweft")


def rotate_on_hangup(links: ZmqLinks, folder: Path, device: str) -> None:
    """From now on, read the keys in `folder` on SIGHUP and use them. Invalid keys change nothing."""
    one_at_a_time = asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()

    async def rotate() -> None:
        async with one_at_a_time:
            await _rotate(links, folder, device)

    def start_rotation() -> None:
        task = asyncio.create_task(rotate())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, start_rotation)


async def _rotate(links: ZmqLinks, folder: Path, device: str) -> None:
    try:
        keys = load(folder, device)
    except (OSError, ValueError) as error:
        log.error("%s: the keys stay as they are: %s", device, error)
        return
    try:
        await links.use_keys(keys)
    except ValueError as error:
        log.error("%s: the keys stay as they are: %s", device, error)
    except OSError as error:  # the old inbox is closed already
        log.error("%s: the new keys are in use, but nobody can connect here: %s", device, error)
    else:
        log.warning("%s: network key %s serves, %d active", device, keys.label(), len(keys.secrets))
