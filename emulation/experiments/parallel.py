"""Chains of cells side by side, each in a process of its own; cells of one chain come in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVar

import torch

from emulation.analysis.records import last_line
from emulation.launch.errors import RunFailed
from emulation.launch.ports import use_ports
from peers.runtime.child_process import guard, redirect_output

T = TypeVar("T")
LOOK_S = 1.0


def chains(items: Sequence[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of one key together, in their order; the keys in the order of their first items."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def run_all(
    found: Sequence[Sequence[T]],
    work: Callable[[T], object],
    name: Callable[[T], str],
    jobs: int,
    log: Path,
    look: Callable[[], None],
) -> None:
    """Do `work` on each item of all chains, at most `jobs` chains at a time; `look` is called now and then.

    `work` is called in a child (it is pickled, as the items are). Raises launcher.RunFailed for the first
    chain that fails; the others, and all that they started, are ended then, as on an interruption.
    """
    context = get_context("spawn")
    lifeline, keep = context.Pipe(duplex=False)
    left = list(enumerate(found))
    running: dict[int, tuple[SpawnProcess, Path]] = {}
    log.mkdir(parents=True, exist_ok=True)
    try:
        while left or running:
            while left and len(running) < jobs:
                number, chain = left.pop(0)
                file = log / f"{name(chain[0]).replace('/', '-')}.txt"
                process = context.Process(
                    target=_work, args=(chain, work, file, lifeline, jobs, (number, len(found)))
                )
                process.start()
                running[process.sentinel] = (process, file)
            for sentinel in wait(list(running), LOOK_S):
                process, file = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode:
                    raise RunFailed(f"{last_line(file)} (see {file})")
            look()
    finally:
        _end([process for process, _ in running.values()])
        keep.close()
        lifeline.close()


def _end(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        process.kill()  # what it started ends with it (peers/runtime/child_process.py)
    for process in processes:
        process.join()


def _work(
    chain: Sequence[T],
    work: Callable[[T], object],
    file: Path,
    lifeline: Connection,
    jobs: int,
    ports: tuple[int, int],
) -> None:
    guard(lifeline)
    use_ports(*ports)
    file.unlink(missing_ok=True)
    redirect_output(file)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    for item in chain:
        work(item)
