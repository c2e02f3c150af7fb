"""Runs chains of items in parallel processes. The items of one chain run in order in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVar

import torch

from emulation.analysis.records import reason
from emulation.launch.errors import RunFailed
from emulation.launch.ports import use_ports
from peers.runtime.child_process import failure_recorded, guard, redirect_output

T = TypeVar("T")
PROGRESS_S = 1.0


def chains(items: Sequence[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Group the items by key. Items keep their order, and chains are in the order of their first items."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def run_chains(
    all_chains: Sequence[Sequence[T]],
    work: Callable[[T], object],
    name: Callable[[T], str],
    jobs: int,
    log: Path,
    on_progress: Callable[[], None],
) -> None:
    """Call `work` on each item of all chains, at most `jobs` chains at a time, and `on_progress` each second.

    `work` and the items are pickled and run in child processes. Raises RunFailed for the first failed chain.
    On a failure or an interruption the other chains and their processes are killed.
    """
    context = get_context("spawn")
    lifeline, keep = context.Pipe(duplex=False)
    waiting = list(enumerate(all_chains))
    running: dict[int, tuple[SpawnProcess, Path]] = {}
    log.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, chain = waiting.pop(0)
                file = log / f"{name(chain[0]).replace('/', '-')}.txt"
                process = context.Process(
                    target=_work, args=(chain, work, file, lifeline, jobs, (number, len(all_chains)))
                )
                process.start()
                running[process.sentinel] = (process, file)
            for sentinel in wait(list(running), PROGRESS_S):
                process, file = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode:
                    raise RunFailed(f"{reason(file)} (see {file})")
            on_progress()
    finally:
        _kill_all([process for process, _ in running.values()])
        keep.close()
        lifeline.close()


def _kill_all(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        process.kill()  # its own children end with it (peers/runtime/child_process.py)
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
    with failure_recorded(file):
        for item in chain:
            work(item)
