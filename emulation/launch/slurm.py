"""The backend `slurm`: each life of a device is a task of a job array; all nodes share the run's folder.

There is one task a device, not one job with many tasks: Slurm ends a whole job when one of its nodes fails.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from time import sleep

from rich.console import Console

from emulation.analysis.records import failure, read_lines, reason
from emulation.launch import interrupts, run_keys, slurm_script
from emulation.launch.backend import SignalKind
from emulation.launch.errors import RunFailed
from emulation.launch.run_state import KILLED, DeviceStatus, RunState
from emulation.launch.slurm_script import HEARTBEAT, NOT_SHARED, TaskScript
from emulation.testbed import epoch, id_leases, run_folder, slurm_tasks, start_gate
from emulation.testbed.slurm import Slurm, SlurmFailed, Task
from peers.errors import LEAVE_UNCONFIRMED, InputError
from peers.runtime import partition
from peers.runtime.external_events import END_SIGNAL

SIGNALS = {
    **{"leave": "SIGTERM", "retire": "SIGINT", "crash": "SIGKILL", "stall": "SIGSTOP", "resume": "SIGCONT"},
    **{"partition": partition.SIGNAL.name, "end": END_SIGNAL.name},
}
LOOK_S = 1.0  # seconds between two questions to Slurm
BEAT_S = 2.0  # seconds between two changes of the heartbeat
UNREACHABLE_S = 300.0  # so long may Slurm give no answer, as when its controller restarts
KILL_S, END_S = 10.0, 60.0  # longest waits for killed tasks, and for the ends of all tasks


@contextmanager
def _slurm_errors_fail_the_run() -> Iterator[None]:
    try:
        yield
    except SlurmFailed as error:
        raise RunFailed(str(error)) from None


def prepare(state: RunState, console: Console) -> SlurmBackend:
    """Make the run's folder and its keys, and ask Slurm whether it would accept the tasks.

    Raises InputError for virtual time, without Slurm, and for options that Slurm refuses.
    """
    scenario, out = state.scenario, state.out
    if scenario.clock == "virtual":
        raise InputError("--on slurm: clock = 'virtual' is for processes of one launcher; allowed: 'real'")
    token = secrets.token_hex(8)
    slurm, prefix = Slurm(f"unweft-{token}"), slurm_script.prefix()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        parent = out.absolute().parent  # the tasks must see the keys; the run's folder may be published
        secret = Path(stack.enter_context(TemporaryDirectory(prefix=".unweft-keys-", dir=parent)))
        script = TaskScript(scenario=scenario, out=out, secret=secret, prefix=prefix)
        try:
            slurm.check(
                script.text(scenario.initial_devices), len(scenario.initial_devices), script.options()
            )
        except SlurmFailed as error:
            raise InputError(
                f"{slurm_script.OPTIONS_VARIABLE}: {error}; allowed: options with which sbatch accepts a job"
            ) from None
        run_keys.write(scenario, secret / "keys")
        (secret / "identity").mkdir()
        run_folder.begin(out, scenario, token)
        cleanup = stack.pop_all()
    state.epoch_ns = epoch.read(out) or 0
    return SlurmBackend(state=state, slurm=slurm, script=script, console=console, cleanup=cleanup)


@dataclass(slots=True)
class Life:
    """One task. It is submitted early, and its device waits at its gate."""

    task: str  # its id in Slurm
    seen: Task | None = None  # as squeue listed it last
    exit: int | None = None  # None: it has not ended


@dataclass(kw_only=True)
class SlurmBackend:
    """The array tasks of a run."""

    state: RunState
    slurm: Slurm
    script: TaskScript
    console: Console
    cleanup: ExitStack = field(default_factory=ExitStack)
    lives: dict[str, list[Life]] = field(default_factory=dict)  # by device
    poll_s: float = 0.5
    _looked_s: float = field(default=float("-inf"), repr=False)  # monotonic: last answer of squeue
    _asked_s: float = field(default=float("-inf"), repr=False)
    _beat_s: float = field(default=float("-inf"), repr=False)

    @_slurm_errors_fail_the_run()
    def start_initial(self) -> None:
        """Submit the initial devices, and those that join later; begin when all initial devices run."""
        scenario = self.state.scenario
        self._submit(scenario.initial_devices)
        self._submit(scenario.all_devices[len(scenario.initial_devices) :])
        self._wait_for_initial()
        for device in scenario.initial_devices:
            start_gate.open_to(self.state.out, device)

    def start(self, device: str) -> None:
        start_gate.open_to(self.state.out, device)

    @_slurm_errors_fail_the_run()
    def signal(self, device: str, kind: SignalKind) -> None:
        if self.lives[device][-1].exit is None:
            self.slurm.signal(self.lives[device][-1].task, SIGNALS[kind], bool(self.script.prefix))

    @_slurm_errors_fail_the_run()
    def running(self) -> dict[str, DeviceStatus]:
        self._beat()
        self._look()
        self._submit_returning()
        return self._statuses()

    @_slurm_errors_fail_the_run()
    def end(self, succeeded: bool) -> dict[str, DeviceStatus]:
        try:
            self._cancel()
        finally:
            self.cleanup.close()
            (self.state.out / HEARTBEAT).unlink(missing_ok=True)
        return self._statuses()

    # -- tasks -------------------------------------------------------------------------------------
    def _submit(self, devices: Sequence[str]) -> None:
        """Submit one array with a new life of each device."""
        if not devices:
            return
        self._beat()
        for device in devices:
            start_gate.close_to(self.state.out, device)
        tasks = self.slurm.submit(self.script.text(devices), len(devices), self.script.options())
        for device, task in zip(devices, tasks, strict=True):
            self.lives.setdefault(device, []).append(Life(task))
        present = {device: lives[-1].task for device, lives in self.lives.items()}
        slurm_tasks.write(self.state.out, self.slurm.name, present, bool(self.script.prefix))

    def _wait_for_initial(self) -> None:
        """Wait until every initial device has claimed its id. The queue of a cluster may be long."""
        said, initial = "", self.state.scenario.initial_devices
        while missing := set(initial) - id_leases.owners(self.state.out).keys():
            interrupts.check()
            for device, status in self.running().items():
                if device in initial and status.exits[-1] is not None:
                    raise RunFailed(f"{device} ended with exit status {status.exits[-1]}: {status.failure}")
            now = f"waiting for Slurm: {len(initial) - len(missing)} of {len(initial)} devices are ready"
            why = {life.seen.reason for d in missing if (life := self.lives[d][-1]).seen and life.seen.waits}
            now += f" ({', '.join(sorted(why))})" if why else ""
            if now != said:
                self.console.print(now, highlight=False, markup=False)
                said = now
            sleep(self.poll_s)

    def _submit_returning(self) -> None:
        """Submit the next lives of devices that return later. They wait at their gates."""
        return_later = {event.device for event in self.state.pending if event.kind == "return"}
        for device in return_later & self.lives.keys():
            if self.lives[device][-1].exit in (0, LEAVE_UNCONFIRMED, *KILLED):
                self._submit([device])

    # -- what Slurm says ---------------------------------------------------------------------------
    def _look(self) -> None:
        """Ask Slurm for all tasks, at most every LOOK_S. It may give no answer for a while."""
        now_s = time.monotonic()
        if now_s < self._asked_s + LOOK_S:
            return
        self._asked_s = now_s
        try:
            tasks = self.slurm.tasks()
        except SlurmFailed:
            if now_s > max(self._looked_s, self._started_s()) + UNREACHABLE_S:
                raise
            return
        self._looked_s = now_s
        for device, lives in self.lives.items():
            for number, life in enumerate(lives):
                if life.exit is None:
                    self._see(device, number, life, tasks.get(life.task))

    def _started_s(self) -> float:
        return self.state.epoch_ns / 1e9

    def _see(self, device: str, number: int, life: Life, task: Task | None) -> None:
        """Update a life that had not ended. Slurm forgets tasks some minutes after their ends."""
        if task is None and life.seen is None:
            return  # squeue does not list it yet
        life.seen = task or life.seen
        if task is None or task.ended:
            life.exit = self._exit(device, number, task)
            if life.exit == NOT_SHARED:
                raise InputError(
                    f"--out: node {task.node if task else ''} does not see {self.state.out.absolute()}; "
                    "allowed: a folder that this machine and all nodes share"
                )

    def _exit(self, device: str, number: int, task: Task | None) -> int:
        """The exit status of a task that has ended. If its device did not end by itself, it was killed."""
        if task is not None and task.exit is not None:
            return task.exit
        lines = read_lines(self.state.out / "devices" / device / "events.jsonl")
        finished = any(e["event"] == "finished" and e.get("life", 0) == number for e in lines)
        return 0 if finished else -SIGKILL

    def _statuses(self) -> dict[str, DeviceStatus]:
        return {device: self._status(device, lives) for device, lives in self.lives.items()}

    def _status(self, device: str, lives: list[Life]) -> DeviceStatus:
        last = lives[-1]
        runs = last.exit is None and last.seen is not None and last.seen.runs
        at_gate = not start_gate.is_open(self.state.out, device)
        failed = any(self.state.failed(device, life.exit) for life in lives)
        return DeviceStatus(
            running=runs and not at_gate,
            exits=tuple(life.exit for life in lives),
            can_return=runs and at_gate,
            failure=self._failure(device, last) if failed else "",
            record={"task": last.task, "node": last.seen.node if last.seen else ""},
        )

    def _failure(self, device: str, life: Life) -> str:
        folder = self.state.out / "devices" / device
        state = life.seen.state if life.seen else "not listed"
        log = folder / "log.txt"
        return f"{failure(folder) or reason(log)}; its log: {log}; its task {life.task}: {state}"

    # -- the launcher's life, and the end ----------------------------------------------------------
    def _beat(self) -> None:
        """Change the heartbeat, so that the tasks go on."""
        if time.monotonic() >= self._beat_s + BEAT_S:
            self._beat_s = time.monotonic()
            with suppress(OSError):  # the disk may be full for a while
                (self.state.out / HEARTBEAT).write_text(f"{time.time_ns()}\n", encoding="ascii")

    def _cancel(self) -> None:
        """End all tasks, and wait until Slurm lists them as ended."""
        begun = time.monotonic()
        while time.monotonic() < begun + END_S:
            self._asked_s = float("-inf")
            self._look()
            if all(life.exit is not None for lives in self.lives.values() for life in lives):
                return
            self.slurm.kill()
            if time.monotonic() > begun + KILL_S:  # a task that was about to start
                self.slurm.cancel()
            sleep(self.poll_s)
        self.console.print(f"tasks that have not ended: squeue --name={self.slurm.name}", highlight=False)
