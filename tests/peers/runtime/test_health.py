"""A device's event loop answers for itself; one that hangs does not: that is an unhealthy device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from peers.runtime import health
from peers.runtime.driver import Driver

STATUS = {"id": "d0", "phase": "train", "round": 7}


@contextmanager
def device(socket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop of its own that answers at `socket`."""
    monkeypatch.setattr(health, "status", lambda driver: STATUS)
    loop, up, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def live() -> None:
        async with health.answering(str(socket), cast(Driver, None)):
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


def test_it_says_how_it_is_as_often_as_it_is_asked(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with device(socket, monkeypatch):
        assert [health.ask(str(socket)) for _ in range(3)] == [STATUS] * 3


def test_a_loop_that_hangs_gives_no_answer(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with device(socket, monkeypatch) as loop:
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


def test_a_device_that_is_gone_gives_no_answer(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with device(socket, monkeypatch):
        pass
    with pytest.raises(OSError):
        health.ask(str(socket))


def test_a_device_that_starts_again_takes_the_socket_over(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with device(socket, monkeypatch):
            assert health.ask(str(socket)) == STATUS


@pytest.mark.parametrize("there", [True, False])
def test_exit_status_of_the_check(
    there: bool, socket: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(health.VARIABLE, str(socket))
    if not there:
        assert health.main() == 1
        assert "no answer" in capsys.readouterr().err
        return
    with device(socket, monkeypatch):
        assert health.main() == 0
    assert capsys.readouterr().out == "d0: train, round 7\n"


def test_nothing_is_answered_where_no_socket_is_asked_for() -> None:
    async def live() -> Any:
        async with health.answering(None, cast(Driver, None)):
            return "lived"

    assert asyncio.run(live()) == "lived"
