"""The evaluator of a run as a process beside the devices."""

from __future__ import annotations

from multiprocessing.context import ForkServerProcess

from emulation.analysis.evaluator import DONE_MARKER, LOG
from emulation.analysis.evaluator import process_main as evaluate_run
from emulation.analysis.records import reason
from emulation.launch.errors import RunFailed
from emulation.launch.forkserver import Forkserver, kill_all
from emulation.launch.run_state import RunState


class EvaluatorProcess:
    """Evaluates snapshots while the run goes on, and the rest after `finish`."""

    def __init__(self, state: RunState) -> None:
        self._state, self._marker = state, state.out / DONE_MARKER
        self._forkserver = Forkserver(state.scenario.model, state.scenario.plugins)
        self._process: ForkServerProcess | None = None

    def start(self) -> None:
        state = self._state
        self._process = self._forkserver.start(evaluate_run, state.out, state.scenario, name="evaluator")

    def finish(self) -> None:
        """Tell the evaluator that no more snapshots will come. It ends after the last one."""
        self._marker.touch()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of the evaluator; returns whether it has ended."""
        if self._process is not None:
            self._process.join(seconds)
        return self._process is None or not self._process.is_alive()

    def check(self) -> None:
        """Raises RunFailed if the evaluator ended with an error."""
        code = None if self._process is None else self._process.exitcode
        if code not in (None, 0):
            log = self._state.out / LOG
            raise RunFailed(f"the evaluator ended with {code}: {reason(log)}; its log: {log}")

    def end(self) -> None:
        """Kill the evaluator if it is still there."""
        kill_all([] if self._process is None else [self._process])
        self._marker.unlink(missing_ok=True)
        self._forkserver.close()
