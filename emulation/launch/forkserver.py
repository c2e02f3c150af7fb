"""Child processes of the launcher, started by a forkserver that has imported the heavy modules already."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from typing import Any

from emulation.launch import interrupts, temporary_folder
from emulation.launch.preload_base_model import NAME as BASE_MODEL
from emulation.launch.preload_base_model import PLUGINS
from peers.config import ModelConfig

PRELOAD = [
    "emulation",  # first: it decides from where the project's packages come
    *(
        "torch",
        "transformers.models.llama.modeling_llama",
        "peft",
        "peers.runtime.main",
        "emulation.analysis.evaluator",
    ),
    "emulation.cli",  # each child imports the main module again
    "emulation.launch.preload_base_model",
    "emulation.launch.preload_frozen",  # last: memory of all modules above stays shared
]


class Forkserver:
    """Starts child processes. Each child ends when this process ends or calls `close`."""

    def __init__(self, model: ModelConfig, plugins: Iterable[str] = ()) -> None:
        # The forkserver starts with the first child and takes the environment of that moment.
        os.environ[BASE_MODEL] = model.model_dump_json()
        os.environ[PLUGINS] = " ".join(plugins)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._lifeline, self._keep = self._context.Pipe(duplex=False)

    def start(self, target: Callable[..., object], *arguments: object, name: str) -> ForkServerProcess:
        """Start `target(*arguments, lifeline)`; a child passes `lifeline` to `child_process.guard`."""
        _start_server()
        process = self._context.Process(target=target, args=(*arguments, self._lifeline), name=name)
        process.start()
        return process

    def close(self) -> None:
        """Close the lifeline of all children."""
        self._keep.close()
        self._lifeline.close()


def _start_server() -> None:
    """Start the forkserver if it does not run.

    A signal that arrives now waits for the launcher. The forkserver inherits the blocked signals, so that
    Ctrl-C does not end it while it imports (preload_frozen.py).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)
    try:
        resource_tracker.ensure_running()  # it unblocks two of the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)
        with temporary_folder.named():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)


def stop_server() -> None:
    """Kill the forkserver. The children end with it (peers/runtime/child_process.py)."""
    server: Any = getattr(forkserver, "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        server._stop()


def kill_all(processes: Iterable[ForkServerProcess]) -> None:
    """Kill all processes that are alive and wait for their ends."""
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    for process in alive:
        process.join()
