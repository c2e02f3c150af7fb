"""Objects in child processes, called from the benchmark.

The processes come from a forkserver, as devices do. They end with the benchmark: each watches a pipe that
closes with it (peers.runtime.child_process.guard), and the end of the `with` block kills the remaining ones.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

import psutil

from peers.runtime.child_process import guard

ANSWER_S = 60.0
Context = ForkServerContext | SpawnContext


class Remote:
    """One object in a child process. A call returns the result of the method. Calls run one at a time."""

    def __init__(self, context: Context, make: type, args: Sequence[object], lifeline: Connection) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, args, theirs, lifeline), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()

    def begin(self, method: str, *args: object) -> None:
        """Start a call without waiting. `result` must follow."""
        self._pipe.send((method, args))

    def result(self, timeout_s: float = ANSWER_S) -> Any:
        """The result of the call. Raises RuntimeError if it failed, its process ended, or in a timeout."""
        if not self._pipe.poll(timeout_s):
            raise RuntimeError(f"no answer from process {self.process.pid} within {timeout_s:g} s")
        try:
            good, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"process {self.process.pid} ended unexpectedly") from None
        if not good:
            raise RuntimeError(value)
        return value

    def call(self, method: str, *args: object) -> Any:
        self.begin(method, *args)
        return self.result()

    def end(self) -> None:
        self._pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


class Crew:
    """The remote objects of one benchmark."""

    def __init__(self, context: Context, lifeline: Connection) -> None:
        self._context, self._lifeline = context, lifeline
        self._remotes: list[Remote] = []

    def remote(self, make: type, *args: object) -> Remote:
        remote = Remote(self._context, make, args, self._lifeline)
        self._remotes.append(remote)
        return remote

    def end(self) -> None:
        while self._remotes:
            self._remotes.pop().end()


@contextmanager
def crew(preload: Sequence[str] | None) -> Iterator[Crew]:
    """A crew whose processes all end at the end of the block.

    preload: modules that the forkserver imports; None: each process is spawned and imports them itself.
    """
    context: Context
    if preload is None:
        context = multiprocessing.get_context("spawn")
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*preload])
    lifeline, keep = context.Pipe(duplex=False)
    crew = Crew(context, lifeline)
    try:
        yield crew
    finally:
        crew.end()
        keep.close()
        lifeline.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module, since a child would import this command line, which costs time and memory."""
    main = sys.modules["__main__"]
    before = {name: main.__dict__.get(name) for name in ("__file__", "__spec__")}
    main.__dict__.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.__dict__.update(before)


def process_cpu_s(process: psutil.Process) -> float:
    """The CPU time so far, user and system, of all threads of a process."""
    used = process.cpu_times()
    return float(used.user + used.system)


def tree_pss_bytes() -> int:
    """Proportional set size of all child processes. Shared pages are counted once."""
    return sum(_pss_bytes(process) for process in psutil.Process().children(recursive=True))


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def _serve(make: type, args: Sequence[object], pipe: Connection, lifeline: Connection) -> None:
    guard(lifeline)
    subject = make(*args)
    gc.freeze()  # the collector skips the objects of the imports
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer = (True, getattr(subject, method)(*arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)
