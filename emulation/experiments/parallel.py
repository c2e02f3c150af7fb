"""Runs chains of items in parallel processes. The items of one chain run in order in one process."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar

from emulation.analysis.records import reason
from emulation.launch.errors import RunFailed
from emulation.launch.forkserver import Forkserver, kill_all
from peers.config import ModelConfig
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
    model: ModelConfig | None = None,
) -> None:
    """Call `work` on each item of all chains, at most `jobs` chains at a time, and `on_progress` each second.

    `model` is loaded once, before the first child process, and all share its memory. `work` and the items
    are pickled and run in child processes. Raises RunFailed for the first failed chain. On a failure or an
    interruption the other chains and their processes are killed.
    """
    forkserver, waiting = Forkserver(model or ModelConfig()), list(all_chains)
    running: dict[int, tuple[ForkServerProcess, Path]] = {}
    log.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                chain = waiting.pop(0)
                file = log / f"{name(chain[0]).replace('/', '-')}.txt"
                process = forkserver.start(_work, chain, work, file, name=name(chain[0]))
                running[process.sentinel] = (process, file)
            for sentinel in wait(list(running), PROGRESS_S):
                process, file = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode:
                    raise RunFailed(f"{reason(file)} (see {file})")
            on_progress()
    finally:
        kill_all(process for process, _ in running.values())
        forkserver.close()


def _work(
    chain: Sequence[T],
    work: Callable[[T], object],
    file: Path,
    lifeline: Connection,
) -> None:
    guard(lifeline)
    file.unlink(missing_ok=True)
    redirect_output(file)
    with failure_recorded(file):
        for item in chain:
            work(item)
