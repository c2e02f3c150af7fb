"""SIGINT, SIGTERM and SIGHUP to a command of `unweft`: all three end it, with 128 + the number of the signal.

The command line imports this module first, so it imports nothing heavy. Three modes follow each other:

- exit: nothing is at stake yet (imports, checks). The process ends at once.
- raise: a signal raises `Interrupted` in the main thread.
- hold: a signal is only noted, because something is written or cleaned up.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOGETHER_S = 0.5  # signals that follow each other faster are one wish
Mode = Literal["exit", "raise", "hold"]


class Interrupted(KeyboardInterrupt):
    """One of SIGNALS has arrived."""


class _State:
    """The signals that this process has had. There is one of it."""

    def __init__(self) -> None:
        self.mode: Mode = "hold"
        self.first: int | None = None  # number of the first signal
        self.first_s = self.raised_s = float("-inf")  # monotonic time of the first signal, of the last raise
        self.again = False
        self.kept = ""


_state = _State()


def install() -> None:
    """Take the signals from now on, in mode `exit`. A SIGHUP that is ignored stays ignored (nohup)."""
    global _state
    _state = _State()
    _state.mode = "exit"
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(ValueError):  # not the main thread
                signal.signal(number, _on_signal)


def set_mode(mode: Mode) -> None:
    """From now on, a signal does this."""
    _state.mode = mode


def ignore() -> None:
    """The command is at its end. The interpreter restores handlers when it ends, but no ignored signal."""
    for number in SIGNALS:
        with suppress(ValueError):  # not the main thread
            signal.signal(number, signal.SIG_IGN)


def keep(text: str) -> None:
    """Say what is left if the command is interrupted from now on."""
    _state.kept = text


def message() -> str:
    """What to tell the user of an interrupt, in one line."""
    number = signal.Signals(_state.first or signal.SIGINT)
    return f"interrupted by {number.name}; {_state.kept or 'nothing was written'}"


def exit_status() -> int:
    """The exit status of a command that was interrupted."""
    return 128 + (_state.first or signal.SIGINT)


def received() -> bool:
    """Whether a signal has arrived."""
    return _state.first is not None


def again() -> bool:
    """Whether a signal has arrived `TOGETHER_S` or more after the first one: the user will not wait."""
    return _state.again


def check() -> None:
    """Raise Interrupted if a signal has arrived, also one that a callback of a library has swallowed."""
    if received():
        raise Interrupted


@contextmanager
def held() -> Iterator[None]:
    """Signals only note themselves. The first one that arrives in here raises Interrupted at the end."""
    mode, before = _state.mode, received()
    _state.mode = "hold"
    try:
        yield
    finally:
        _state.mode = mode
    if not before:
        check()


def _on_signal(number: int, frame: FrameType | None) -> None:
    now_s = time.monotonic()
    if _state.first is None:
        _state.first, _state.first_s = number, now_s
    elif now_s - _state.first_s >= TOGETHER_S:
        _state.again = True
    if _state.mode == "exit":
        _exit_now()
    if _state.mode == "raise" and now_s - _state.raised_s >= TOGETHER_S:
        _state.raised_s = now_s
        raise Interrupted


def _exit_now() -> None:
    _state.mode = "hold"
    with suppress(OSError):
        os.write(2, f"unweft: {message()}\n".encode())
    os._exit(exit_status())
