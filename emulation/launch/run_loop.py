"""The loop of a run, the same for every backend: it injects events, checks devices and waits for the end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from time import sleep

from rich.console import Console

from emulation.analysis import forgotten_files
from emulation.launch import backend as backends
from emulation.launch import interrupts
from emulation.launch.backend import Backend, Prepare
from emulation.launch.device_scripts import subject
from emulation.launch.early_end import end_early
from emulation.launch.errors import RunFailed
from emulation.launch.evaluator_process import EvaluatorProcess
from emulation.launch.run_state import RunState
from emulation.launch.start import Start
from emulation.report.terminal import Progress
from emulation.report.trackers import Tracking
from emulation.scenario.events import ARRIVALS, OF_THE_NETWORK, EventConfig
from emulation.scenario.schema import Scenario
from emulation.testbed import leave_delivery
from peers.errors import InputError
from peers.runtime import partition


def run(
    scenario: Scenario,
    out: Path,
    console: Console,
    on: str | Prepare = "local",
    track: str | None = None,
    continues: Start | None = None,
) -> int:
    """Run a scenario; returns 0.

    `on`: a name of `BACKENDS`, or what prepares another backend. `track`: a tracker of `TRACKERS` that is
    told. `continues`: how an interrupted run in `out` goes on.

    Raises InputError if the backend cannot run the scenario, and RunFailed. KeyboardInterrupt passes through.
    In each case no device and no evaluator is left when this returns, and run.json is written.
    """
    state = RunState(scenario=scenario, out=out, continues=continues)
    state.pending = list(state.start.events)
    backend = backends.prepare(on, state, console) if isinstance(on, str) else on(state, console)
    evaluator, succeeded = EvaluatorProcess(state), False
    try:
        evaluator.start()
        backend.start_initial()
        _follow(state, backend, evaluator, console, track)
        succeeded = True
    except KeyboardInterrupt:
        with interrupts.held():
            end_early(state, backend, evaluator, console)
        raise
    finally:
        with interrupts.held():
            _end(state, backend, evaluator, succeeded)
    for event in state.pending:
        shown = f"{event.kind} {subject(event)}"
        console.print(f"[yellow]not done[/]: {shown} after round {event.round}: the run had ended")
    return 0


def _end(state: RunState, backend: Backend, evaluator: EvaluatorProcess, succeeded: bool) -> None:
    end_s = state.seconds()
    evaluator.end()
    try:
        state.devices = backend.end(succeeded)
        state.record_late_crashes(end_s)
        state.withdraw_ineffective()
    finally:
        state.write_record()
        with suppress(InputError, OSError):  # the summary names each file that still holds a forgotten block
            forgotten_files.correct(state.out, keep_snapshots=True)


# -- the loop ------------------------------------------------------------------------------------------
def _follow(
    state: RunState, backend: Backend, evaluator: EvaluatorProcess, console: Console, track: str | None
) -> None:
    """Until all devices and the evaluator have ended."""
    with (
        Tracking(track, state.scenario, state.out, console),
        Progress(state.scenario, state.out, console, state.start.goes_on) as progress,
    ):
        while not step(state, backend, evaluator):
            interrupts.check()
            progress.update(state.seconds())
            sleep(backend.poll_s)
        evaluator.finish()
        while not evaluator.wait(backend.poll_s):
            progress.update(state.seconds())
        progress.update(state.seconds())
    evaluator.check()


def step(state: RunState, backend: Backend, evaluator: EvaluatorProcess) -> bool:
    """Look at all devices and inject the events that are due; returns whether all devices have ended.

    Raises RunFailed if a device or the evaluator failed.
    """
    state.see_devices(backend.running())
    check_devices(state)
    evaluator.check()
    inject_due(state, backend)
    deliver_leaves(state, backend)
    return bool(state.devices) and not state.running()


def check_devices(state: RunState) -> None:
    """Record crashes from outside. Raises RunFailed if a device failed or if all were killed."""
    state.record_crashes()
    for device, status in state.devices.items():
        for code in status.exits:
            if state.failed(device, code):
                raise RunFailed(f"{device} ended with exit status {code}: {status.failure}")
    if state.devices and all(status.killed for status in state.devices.values()):
        raise RunFailed(f"every device was killed; logs: {state.out / 'devices'}")


def deliver_leaves(state: RunState, backend: Backend) -> None:
    """Deliver the leaves that nobody has confirmed to all devices that run, until one has recorded them.

    In virtual time the scenario alone decides what happens.
    """
    running = state.running()
    due = state.seconds() >= state.delivered_s + leave_delivery.AGAIN_S
    if state.scenario.clock == "virtual" or not due or len(running) == len(state.devices):
        return
    state.delivered_s = state.seconds()
    wishes = leave_delivery.pending(state.out, state.devices.keys() - running.keys())
    if wishes:
        leave_delivery.deliver(state.out, wishes, running)
        for device in running:
            if state.last_round.get(device, -1) >= 0:  # a device that starts reads its folder then
                backend.signal(device, "partition")


# -- events --------------------------------------------------------------------------------------------
def inject_due(state: RunState, backend: Backend) -> None:
    """Resume devices whose stall is over, then do all events that are due."""
    for device in state.pop_ended_stalls():
        if device in state.running():
            backend.signal(device, "resume")
            state.record_resume(device)
    while not state.ending() and (event := state.next_due()) is not None:
        state.pending.remove(event)
        if event.device is None or event.kind in ARRIVALS or event.device in state.running():
            state.record_event(event.round, event.kind, subject(event))
            inject(state, backend, event)


def inject(state: RunState, backend: Backend, event: EventConfig) -> None:
    """Do one event of the scenario."""
    if event.kind in OF_THE_NETWORK:
        _change_partition(state, backend, event)
    elif event.device is not None:
        _inject_to_device(state, backend, event, event.device)


def _inject_to_device(state: RunState, backend: Backend, event: EventConfig, device: str) -> None:
    match event.kind:
        case "join" | "return":
            _start(state, backend, device)
        case "leave" | "retire" | "crash" | "stall":
            if event.kind == "crash":
                state.expect_kill(device)
            backend.signal(device, event.kind)
            if event.kind == "stall":
                state.resume_at.append((state.seconds() + (event.duration_s or 0.0), device))


def _start(state: RunState, backend: Backend, device: str) -> None:
    if state.partition:
        _write_partition(state, device)
    backend.start(device)
    state.last_round[device] = -1
    state.see_devices(backend.running())


def _change_partition(state: RunState, backend: Backend, event: EventConfig) -> None:
    """Emulated on every backend: devices drop messages of the devices that they cannot reach."""
    state.partition = event.groups
    for device, status in state.devices.items():  # a device that has ended may return
        _write_partition(state, device)
        if status.running:
            backend.signal(device, "partition")


def _write_partition(state: RunState, device: str) -> None:
    partition.write(state.out / "devices" / device, state.cut_off(device))
