"""The end of a run that the user interrupts: the devices export their last closed round and say goodbye."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from emulation.launch import interrupts
from emulation.launch.backend import Backend
from emulation.launch.errors import RunFailed
from emulation.launch.evaluator_process import EvaluatorProcess
from emulation.launch.run_state import RunState

DEVICES_S = 15.0  # longest wait for the devices' exports
EVALUATOR_S = 30.0  # longest wait for the evaluation of the last snapshots
LOOK_S = 0.1
ENDING = (
    "ending the run: the devices export their last closed round; another interrupt ends it at once, "
    "without what is not exported yet"
)


def end_early(state: RunState, backend: Backend, evaluator: EvaluatorProcess, console: Console) -> None:
    """Tell all devices that the run ends, and wait until they and the evaluator are done.

    Another interrupt ends the wait. Call it while interrupts are held.
    """
    console.print(ENDING, highlight=False, soft_wrap=True)
    try:
        _tell_devices(state, backend)
        _wait(DEVICES_S, lambda: not _running(state, backend))
        evaluator.finish()
        _wait(EVALUATOR_S, lambda: evaluator.wait(LOOK_S))
    except (RunFailed, OSError) as error:
        console.print(f"the devices could not end the run: {error}", highlight=False, markup=False)


def _tell_devices(state: RunState, backend: Backend) -> None:
    state.see_devices(backend.running())
    for _, device in state.resume_at:
        if device in state.running():
            backend.signal(device, "resume")
    for device in state.running():
        backend.signal(device, "end")


def _running(state: RunState, backend: Backend) -> bool:
    state.see_devices(backend.running())
    return bool(state.running())


def _wait(seconds: float, done: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not done() and not interrupts.again() and time.monotonic() < until:
        time.sleep(LOOK_S)
