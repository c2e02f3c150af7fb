"""Health checks: the event loop of a device answers, and a loop that hangs gives no answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.errors import InputError
from peers.runtime import health

STATUS = {"id": "d0", "phase": "train", "round": 7}


@contextmanager
def device(socket: Path) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop of its own that answers at `socket`."""
    loop, up, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def live() -> None:
        async with health.answering(str(socket), lambda: STATUS):
            up.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    try:
        assert up.wait(10)
        yield loop
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "health"


def test_it_answers_every_question(socket: Path) -> None:
    with device(socket):
        assert [health.ask(str(socket)) for _ in range(3)] == [STATUS] * 3


def test_a_loop_that_hangs_gives_no_answer(socket: Path) -> None:
    with device(socket) as loop:
        hangs, goes_on = threading.Event(), threading.Event()

        def hang() -> None:
            hangs.set()
            goes_on.wait(30)

        loop.call_soon_threadsafe(hang)
        assert hangs.wait(10)
        try:
            with pytest.raises(OSError):
                health.ask(str(socket), timeout_s=0.2)
        finally:
            goes_on.set()
        assert health.ask(str(socket), timeout_s=10) == STATUS


def test_a_device_that_is_gone_gives_no_answer(socket: Path) -> None:
    with device(socket):
        pass
    with pytest.raises(OSError):
        health.ask(str(socket))


def test_a_device_that_starts_again_takes_the_socket_over(socket: Path) -> None:
    for _ in range(2):
        with device(socket):
            assert health.ask(str(socket)) == STATUS


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("x" * 200, "the path has 200 bytes"),
        ("é" * 54, "the path has 108 bytes"),
        ("", "the path has 0 bytes"),
        ("/no-such-folder/health", "there is no folder /no-such-folder"),
        ("a-file", "another file is there"),
    ],
)
def test_a_path_that_cannot_be_a_socket_is_one_clear_error(
    path: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    with pytest.raises(InputError, match=rf"^UNWEFT_HEALTH: '.*': {why}; allowed: a path of 1 to 107 bytes"):
        health.check_path(path)


def test_a_path_of_the_longest_length_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x" * health.LONGEST_PATH)
    health.check_path(str(path))
    with device(path):
        health.check_path(str(path))  # a device that starts again
        assert health.ask(str(path)) == STATUS


@pytest.mark.parametrize("there", [True, False])
def test_exit_status_of_the_health_check(
    there: bool, socket: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(health.VARIABLE, str(socket))
    if not there:
        assert health.main() == 1
        assert "no answer" in capsys.readouterr().err
        return
    with device(socket):
        assert health.main() == 0
    assert capsys.readouterr().out == "d0: train, round 7\n"


def test_without_a_socket_path_nobody_is_answered() -> None:
    async def live() -> Any:
        async with health.answering(None, lambda: STATUS):
            return "lived"

    assert asyncio.run(live()) == "lived"
