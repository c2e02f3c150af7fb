"""`unweft run`: start each device as a process, inject the scenario's events, leave no process behind."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from rich.console import Console

from emulation.analysis.evaluator import DONE_MARKER
from emulation.analysis.evaluator import process_main as evaluate_run
from emulation.analysis.records import Tail, last_line, write_run
from emulation.launch import run_keys
from emulation.launch.device_scripts import acted_out, met, scripts, shown
from emulation.launch.preload_base_model import NAME as BASE_MODEL
from emulation.launch.run_keys import DeviceKeys
from emulation.launch.run_state import RunState
from emulation.radio import wireless
from emulation.report.terminal import Progress
from emulation.scenario.events import ARRIVALS, OF_THE_NETWORK, EventConfig
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario
from peers.runtime import partition
from peers.runtime.main import DeviceSpec, process_main
from transport.clocks.virtual import life_name
from transport.shaping.channel import Channel

POLL_S = 0.1
PRELOAD = [
    *(
        "torch",
        "transformers.models.llama.modeling_llama",
        "peft",
        "peers.runtime.main",
        "emulation.analysis.evaluator",
    ),
    "emulation.cli",  # each child imports the main module again
    "emulation.launch.preload_base_model",
    "emulation.launch.preload_frozen",  # last: what is above stays shared
]
PORTS = ports_range = range(10_000, 30_000)  # what a run's addresses are drawn from
SEEDS = 8  # addresses that a device starts from
SIGNALS = {"leave": signal.SIGTERM, "retire": signal.SIGINT, "crash": signal.SIGKILL, "stall": signal.SIGSTOP}


class RunFailed(Exception):
    """A run that could not be brought to its end: which device, why, where its log is."""


@dataclass
class Started:
    """One device process and what the launcher did to it."""

    process: ForkServerProcess
    killed: bool = False
    life: int = 0  # processes of this id before it


@dataclass(kw_only=True)
class Run(RunState):
    """The state of a run of processes."""

    context: ForkServerContext
    addresses: dict[str, str]
    channel: Channel
    keys: dict[str, DeviceKeys] = field(repr=False)
    devices: dict[str, Started] = field(default_factory=dict)
    lives: list[tuple[str, Started]] = field(default_factory=list)  # all that were ever started

    def running(self) -> dict[str, Started]:
        return {d: s for d, s in self.devices.items() if s.process.is_alive()}


def run(scenario: Scenario, out: Path, console: Console) -> int:
    """Run a scenario; 0 when every device that was to finish has finished.

    Raises RunFailed; KeyboardInterrupt passes through. In each case every child is gone when this returns.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "scenario.toml").write_text(dump(scenario), encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    os.environ[BASE_MODEL] = scenario.model.model_dump_json()  # for a forkserver that is not there yet
    lifeline, keep = context.Pipe(duplex=False)
    epoch_ns, addresses = time.monotonic_ns(), _addresses(scenario)
    pending, channel = list(scenario.events), wireless.channel(scenario, scenario.all_devices)
    state = Run(
        scenario=scenario,
        out=out,
        epoch_ns=epoch_ns,
        pending=pending,
        context=context,
        addresses=addresses,
        channel=channel,
        keys=run_keys.make(scenario),
    )
    evaluator = context.Process(target=evaluate_run, args=(out, scenario, lifeline), name="evaluator")
    try:
        evaluator.start()
        for device in scenario.initial_devices:
            _start(state, device, len(scenario.initial_devices), lifeline)
        if scenario.clock == "virtual":  # all clocks know from the start who will join, and each device when
            for event in scenario.events:
                if event.kind in ARRIVALS and event.device:
                    _start(state, event.device, 0, lifeline)
            state.pending.clear()
        with Progress(scenario, out, console) as progress:
            _watch(state, progress, lifeline, evaluator)
            (out / DONE_MARKER).touch()
            while evaluator.is_alive():
                progress.update(state.seconds())
                evaluator.join(POLL_S)
            progress.update(state.seconds())
        for event in state.pending:
            what = f"{event.kind} {shown(event)}"
            console.print(f"[yellow]not done[/]: {what} after round {event.round}: the run had ended")
        _check(state, evaluator)
        return 0
    finally:
        _stop_all([evaluator, *(started.process for _, started in state.lives)])
        _write_run(state)
        (out / DONE_MARKER).unlink(missing_ok=True)
        keep.close()
        lifeline.close()


def _start(state: Run, device: str, cohort: int, lifeline: object) -> None:
    before = state.devices.get(device)
    life = 0 if before is None else before.life + 1
    address = state.addresses[life_name(device, life)]
    script = scripts(state.scenario, device, life) if state.scenario.clock == "virtual" else ()
    if state.partition:
        partition.write(state.out / "devices" / device, state.cut_off(device))
    spec = DeviceSpec(
        id=device,
        config=state.scenario.device_config(),
        listen=address,
        advertise=address,
        seeds=tuple(state.addresses[other] for other in _met(state, device, life, cohort)[:SEEDS]),
        out=str(state.out),
        cohort=cohort,
        epoch_ns=state.epoch_ns,
        snapshot_every=state.scenario.eval.every,
        keys=state.keys[device].network,
        signing=state.keys[device].signing,
        channel=state.channel,
        group=state.addresses,
        life=life,
        script=script,
    )
    process = state.context.Process(target=process_main, args=(spec, lifeline), name=device)
    process.start()
    killed = any(event.kind == "crash" for event in script)
    state.devices[device] = Started(process, killed, life=life)
    state.last_round[device] = -1
    state.lives.append((device, state.devices[device]))


def _met(state: Run, device: str, life: int, cohort: int) -> list[str]:
    """Whom it begins with, by `life_name`: as scripted; in real time, an arrival with who is really there."""
    running = {d: s for d, s in state.running().items() if d != device}
    if cohort or state.scenario.clock == "virtual" or not running:
        return met(state.scenario, device, life)
    heard = running.keys() - state.cut_off(device)
    return [life_name(d, s.life) for d, s in running.items() if d in heard or not heard]


def _watch(state: Run, progress: Progress, lifeline: object, evaluator: ForkServerProcess) -> None:
    """Until all devices are gone: follow their rounds, inject what is due, notice who fell."""
    tails: dict[str, Tail] = {}
    while True:
        for device in state.devices:
            tail = tails.setdefault(device, Tail(state.out / "devices" / device / "metrics.jsonl"))
            for record in tail.read():
                state.last_round[device] = int(str(record["round"]))
        _inject_due(state, lifeline)
        _check(state, evaluator)
        progress.update(state.seconds())
        if not state.running():
            return
        time.sleep(POLL_S)


def _inject_due(state: Run, lifeline: object) -> None:
    running = state.running()
    for device in state.to_resume():
        if device in running:
            _signal(running[device], signal.SIGCONT)
    while not state.over() and (event := state.due()) is not None:
        state.pending.remove(event)
        if event.device is None or event.kind in ARRIVALS or event.device in state.running():
            state.note(event.round, event.kind, shown(event))
            _inject(state, event, lifeline)


def _inject(state: Run, event: EventConfig, lifeline: object) -> None:
    running = state.running()
    if event.kind in OF_THE_NETWORK:
        state.partition = event.groups
        for device, started in state.devices.items():  # one that is gone now may return
            partition.write(state.out / "devices" / device, state.cut_off(device))
            if device in running:
                _signal(started, partition.SIGNAL)
    elif event.kind in ARRIVALS and event.device:
        _start(state, event.device, 0, lifeline)
    elif event.device in running:
        started = running[event.device]
        started.killed = event.kind == "crash"
        _signal(started, SIGNALS[event.kind])
        if event.kind == "stall":
            state.resume_at.append((state.seconds() + (event.duration_s or 0.0), event.device))


def _signal(started: Started, number: signal.Signals) -> None:
    if started.process.pid is not None:
        with suppress(ProcessLookupError):  # it has ended by itself meanwhile
            os.kill(started.process.pid, number)


def _check(state: Run, evaluator: ForkServerProcess) -> None:
    for device, started in state.lives:
        code = started.process.exitcode
        if code == -signal.SIGKILL and not started.killed:  # from outside: a crash like any other
            started.killed = True
            state.note(state.last_round[device], "crash", device)
        elif code not in (None, 0, -signal.SIGKILL):
            log = state.out / "devices" / device / "log.txt"
            raise RunFailed(f"{device} ended with exit status {code}: {last_line(log)}; its log: {log}")
    if evaluator.exitcode not in (None, 0):
        log = state.out / "evaluator.log"
        raise RunFailed(f"the evaluator ended with {evaluator.exitcode}: {last_line(log)}; its log: {log}")
    if state.devices and all(s.process.exitcode == -signal.SIGKILL for s in state.devices.values()):
        raise RunFailed(f"every device was killed; logs: {state.out / 'devices'}")


def _stop_all(processes: list[ForkServerProcess]) -> None:
    """End what is still there: nothing is asked twice, nothing survives."""
    with _no_interrupt():
        alive = [p for p in processes if p.pid is not None and p.is_alive()]
        for process in alive:
            process.kill()
        for process in alive:
            process.join()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """A second Ctrl-C must not cut the cleaning-up short."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write_run(state: Run) -> None:
    if state.scenario.clock == "virtual":
        state.events += acted_out(state.out, state.devices)
    devices = {d: {"pid": s.process.pid, "exit": s.process.exitcode} for d, s in state.devices.items()}
    write_run(state.out, devices, state.events, state.epoch_ns, state.seconds())


def _addresses(scenario: Scenario) -> dict[str, str]:
    """A loopback port for each life of each device, outside the range that outgoing connections are given."""
    lives = Counter(event.device for event in scenario.events if event.kind in ARRIVALS)
    lives.update(scenario.initial_devices)
    names = [life_name(d, life) for d in scenario.all_devices for life in range(lives[d])]
    return dict(zip(names, map(_address, free_ports(len(names))), strict=True))


def _address(port: int) -> str:
    return f"tcp://127.0.0.1:{port}"


def use_ports(number: int, of: int) -> None:
    """This process and `of` - 1 others that run at the same time take no port from each other."""
    global ports_range
    ports_range = PORTS[number::of]


def free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.SystemRandom().sample(ports_range, min(4000, len(ports_range))):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RunFailed(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")
