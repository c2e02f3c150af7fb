"""A test that leaks a process, a thread or a socket fails.

ZeroMQ's sockets are found by the threads of their contexts: a context that was not ended keeps its own two.
What libraries start once and keep (multiprocessing's helpers, pyzmq's and tqdm's threads) is theirs; torch's
pools are no Python threads and so are not looked at.
"""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings
from zmq.utils.garbage import GarbageCollectorThread
from zmq.utils.garbage import gc as zmq_gc

from tests.support.browsers import browser as browser  # a fixture

# an example that a busy machine makes slow is no failure; pytest-timeout ends what hangs
settings.register_profile("unweft", deadline=None)
settings.load_profile("unweft")

GRACE_S = 2.0  # what is on its way out may take this long
KEPT_THREADS = ("TMonitor", "tqdm_monitor", "asyncio_")
KEPT_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
TASKS, FDS = Path("/proc/self/task"), Path("/proc/self/fd")


@pytest.fixture(scope="session", autouse=True)
def _pyzmq_collector() -> Iterator[None]:
    """pyzmq starts a thread and a context with its first zero-copy send: have it there before any test."""
    zmq_gc.store(b"")
    deadline = time.monotonic() + GRACE_S
    while len(_zmq_contexts()) < 2 and time.monotonic() < deadline:  # its threads take their names later
        time.sleep(0.01)
    yield
    zmq_gc.stop()


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    before = _resources()
    yield
    deadline = time.monotonic() + GRACE_S
    while (leaked := _resources() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    if leaked:
        pytest.fail("leaked: " + ", ".join(sorted(leaked)), pytrace=False)


def _resources() -> set[str]:
    return _threads() | _processes() | _zmq_contexts() | _sockets()


def _threads() -> set[str]:
    return {
        f"thread {thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not isinstance(thread, GarbageCollectorThread) and not thread.name.startswith(KEPT_THREADS)
    }


def _processes() -> set[str]:
    multiprocessing.active_children()  # reaps those that have ended
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            alive = child.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            continue
        if alive and not any(kept in command for kept in KEPT_PROCESSES):
            found.add(f"process {child.pid} {command[:80]}")
    return found


def _zmq_contexts() -> set[str]:
    found = set()
    for task in TASKS.iterdir() if TASKS.exists() else ():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("ZMQbg"):
            found.add(f"ZeroMQ context ({name}, {task.name})")
    return found


def _sockets() -> set[str]:
    found = set()
    for fd in FDS.iterdir() if FDS.exists() else ():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
