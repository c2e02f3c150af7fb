"""Objects that live in processes of their own and are called from here.

Processes come from a forkserver, as devices do. None outlives the benchmark: each watches a pipe that closes
with it (peers.runtime.child_process.guard), and whoever leaves the `with` block kills what is still there.
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
    """One object in a process of its own. Calls return what its methods return; one at a time."""

    def __init__(self, context: Context, make: type, args: Sequence[object], lifeline: Connection) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, args, theirs, lifeline), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()

    def begin(self, method: str, *args: object) -> None:
        """Call a method and go on; `result` is to follow."""
        self._pipe.send((method, args))

    def result(self, timeout_s: float = ANSWER_S) -> Any:
        """What the method returned. Raises RuntimeError if it raised, its process ended or time is up."""
        if not self._pipe.poll(timeout_s):
            raise RuntimeError(f"no answer from process {self.process.pid} within {timeout_s:g} s")
        try:
            good, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"process {self.process.pid} ended unasked") from None
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
    """Ends all of its processes on the way out, whatever happened.

    `preload` None: each process starts from nothing and imports what it needs itself (spawn).
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
    """A child imports its parent's main module again: a command line, for which no contender should pay."""
    main = sys.modules["__main__"]
    before = {name: main.__dict__.get(name) for name in ("__file__", "__spec__")}
    main.__dict__.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.__dict__.update(before)


def tree_pss_bytes() -> int:
    """Proportional set size of all processes beneath this one: what they share is counted once."""
    return sum(_pss_bytes(process) for process in psutil.Process().children(recursive=True))


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def _serve(make: type, args: Sequence[object], pipe: Connection, lifeline: Connection) -> None:
    guard(lifeline)
    subject = make(*args)
    gc.freeze()  # what imports left is not looked through again
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
