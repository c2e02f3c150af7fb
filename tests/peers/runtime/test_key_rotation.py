"""Rotation of a device's keys by SIGHUP, and the log line about it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import cast

import pytest

from peers.runtime.key_rotation import rotate_on_hangup
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import NetworkKeys, generate


class FakeLinks:
    """Accepts keys or raises an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.keys = error, list[NetworkKeys]()

    async def use_keys(self, keys: NetworkKeys) -> None:
        if self.error is not None:
            raise self.error
        self.keys.append(keys)


async def hang_up(folder: Path, links: FakeLinks, caplog: pytest.LogCaptureFixture) -> str:
    rotate_on_hangup(cast(ZmqLinks, links), folder, "d0")
    os.kill(os.getpid(), signal.SIGHUP)
    for _ in range(1000):
        if caplog.messages:
            break
        await asyncio.sleep(0.01)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    return caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "serves, 1 active"),
        (ValueError("links without keys"), "d0: the keys stay as they are: links without keys"),
        (OSError("cannot listen"), "d0: the new keys are in use, but nobody can connect here: cannot listen"),
    ],
)
def test_the_log_says_which_keys_are_in_use(
    error: Exception | None, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate(tmp_path)
    links = FakeLinks(error)
    assert said in asyncio.run(hang_up(tmp_path, links, caplog))
    assert len(links.keys) == (error is None)


def test_a_folder_without_keys_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    links = FakeLinks(None)
    assert "d0: the keys stay as they are: " in asyncio.run(hang_up(tmp_path, links, caplog))
    assert not links.keys
