"""The process of a device, from the view of the device. By default each device has a process of its own.

A launcher may run all devices of a virtual run in one process (emulation/launch/one_process.py). Then no
device gets signals, a crash ends the device and not the process, and all work is done in the event loop.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn


class Crashed(Exception):
    """A device of a shared process has crashed, as its scenario says."""


class Inline(Executor):
    """Does work at once, in the thread that submits it. Equal to one worker thread but for the time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _kill_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)  # not reached


def _raise_crashed() -> NoReturn:
    raise Crashed


def _process_usage() -> dict[str, float | int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = round(usage.ru_utime + usage.ru_stime, 3)
    return {"train_cpu_s": cpu_s, "peak_rss_bytes": usage.ru_maxrss * 1024}


def _no_usage() -> dict[str, float | int]:
    return {}


@dataclass(frozen=True, slots=True)
class Host:
    """worker: makes the executor of the learner's work. crash: ends the device as a power loss would.

    usage: CPU seconds and bytes of memory of this device alone; empty if they cannot be told.
    """

    signals: bool
    worker: Callable[[], Executor]
    crash: Callable[[], NoReturn]
    usage: Callable[[], dict[str, float | int]]


OWN_PROCESS = Host(
    signals=True,
    worker=partial(ThreadPoolExecutor, 1, thread_name_prefix="learner"),
    crash=_kill_process,
    usage=_process_usage,
)
SHARED_PROCESS = Host(signals=False, worker=Inline, crash=_raise_crashed, usage=_no_usage)
