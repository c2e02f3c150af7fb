"""`unweft run`: start each device as a process, inject the scenario's events, leave no process behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from rich.console import Console

from emulation import evaluator, radio, run_keys
from emulation.progress import Progress
from emulation.records import Tail, read_lines
from emulation.run_keys import DeviceKeys
from emulation.scenario import EventConfig, Scenario, dump
from peers.device import DeviceSpec, process_main
from peers.script import Scripted
from transport.channel import Channel

POLL_S = 0.1
PRELOAD = ["torch", "transformers.models.llama.modeling_llama", "peft", "peers.device", "emulation.evaluator"]
SIGNALS = {"leave": signal.SIGTERM, "retire": signal.SIGINT, "crash": signal.SIGKILL, "stall": signal.SIGSTOP}


class RunFailed(Exception):
    """A run that could not be brought to its end: which device, why, where its log is."""


@dataclass
class Started:
    """One device process and what the launcher did to it."""

    process: ForkServerProcess
    killed: bool = False
    last_round: int = -1


@dataclass
class Run:
    """The state of a run while it goes on."""

    scenario: Scenario
    out: Path
    context: ForkServerContext
    epoch_ns: int
    addresses: dict[str, str]
    pending: list[EventConfig]
    channel: Channel
    keys: dict[str, DeviceKeys] = field(repr=False)
    devices: dict[str, Started] = field(default_factory=dict)
    events: list[dict[str, object]] = field(default_factory=list)
    resume_at: list[tuple[float, str]] = field(default_factory=list)

    def seconds(self) -> float:
        return (time.monotonic_ns() - self.epoch_ns) / 1e9

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
    lifeline, keep = context.Pipe(duplex=False)
    epoch_ns, addresses = time.monotonic_ns(), _addresses(scenario)
    pending, channel = list(scenario.event), radio.channel(scenario, scenario.all_devices)
    state = Run(scenario, out, context, epoch_ns, addresses, pending, channel, run_keys.make(scenario))
    judge = context.Process(target=evaluator.process_main, args=(out, scenario, lifeline), name="evaluator")
    try:
        judge.start()
        for device in scenario.initial_devices:
            _start(state, device, len(scenario.initial_devices), lifeline)
        if scenario.clock == "virtual":  # all clocks know from the start who will join, and each device when
            for device in scenario.all_devices[len(scenario.initial_devices) :]:
                _start(state, device, 0, lifeline)
            state.pending.clear()
        with Progress(scenario, out, console) as progress:
            _watch(state, progress, lifeline, judge)
            (out / evaluator.DONE_MARKER).touch()
            while judge.is_alive():
                progress.update(state.seconds())
                judge.join(POLL_S)
            progress.update(state.seconds())
        _check(state, judge)
        return 0
    finally:
        _stop_all([judge, *(s.process for s in state.devices.values())])
        _write_run(state)
        (out / evaluator.DONE_MARKER).unlink(missing_ok=True)
        keep.close()
        lifeline.close()


def _start(state: Run, device: str, cohort: int, lifeline: object) -> None:
    seeds = tuple(state.addresses[d] for d in state.scenario.initial_devices if d != device)[:3]
    virtual = state.scenario.clock == "virtual"
    script = tuple(_scripted(e) for e in state.scenario.event if e.device == device) if virtual else ()
    spec = DeviceSpec(
        id=device,
        config=state.scenario.device_config(),
        listen=state.addresses[device],
        advertise=state.addresses[device],
        seeds=seeds,
        out=str(state.out),
        cohort=cohort,
        epoch_ns=state.epoch_ns,
        snapshot_every=state.scenario.eval.every,
        keys=state.keys[device].network,
        signing=state.keys[device].signing,
        channel=state.channel,
        group=state.addresses,
        script=script,
    )
    process = state.context.Process(target=process_main, args=(spec, lifeline), name=device)
    process.start()
    state.devices[device] = Started(process, killed=any(event.kind == "crash" for event in script))


def _scripted(event: EventConfig) -> Scripted:
    return Scripted(event.round, event.kind, event.duration_s or 0.0)


def _watch(state: Run, progress: Progress, lifeline: object, judge: ForkServerProcess) -> None:
    """Until all devices are gone: follow their rounds, inject what is due, notice who fell."""
    tails: dict[str, Tail] = {}
    while state.running() or any(e.kind == "join" for e in state.pending):
        for device, started in state.devices.items():
            tail = tails.setdefault(device, Tail(state.out / "devices" / device / "metrics.jsonl"))
            for record in tail.read():
                started.last_round = int(str(record["round"]))
        _inject_due(state, lifeline)
        _check(state, judge)
        progress.update(state.seconds())
        if not state.running():
            break
        time.sleep(POLL_S)


def _inject_due(state: Run, lifeline: object) -> None:
    running = state.running()
    for at, device in [r for r in state.resume_at if r[0] <= state.seconds()]:
        state.resume_at.remove((at, device))
        if device in running:
            _signal(running[device], signal.SIGCONT)
    slowest = min((s.last_round for s in running.values()), default=-1)
    for event in [e for e in state.pending if e.round <= slowest]:
        state.pending.remove(event)
        at = state.seconds()
        if event.kind == "join":
            _start(state, event.device, 0, lifeline)
        elif event.device in running:
            started = state.devices[event.device]
            started.killed = event.kind == "crash"
            _signal(started, SIGNALS[event.kind])
            if event.kind == "stall":
                state.resume_at.append((at + (event.duration_s or 0.0), event.device))
        state.events.append({"round": event.round, "kind": event.kind, "device": event.device, "t_s": at})


def _signal(started: Started, number: signal.Signals) -> None:
    if started.process.pid is not None:
        os.kill(started.process.pid, number)


def _check(state: Run, judge: ForkServerProcess) -> None:
    for device, started in state.devices.items():
        code = started.process.exitcode
        if code == -signal.SIGKILL and not started.killed:  # from outside: a crash like any other
            started.killed = True
            event = {"round": started.last_round, "kind": "crash", "device": device, "t_s": state.seconds()}
            state.events.append(event)
        elif code not in (None, 0, -signal.SIGKILL):
            log = state.out / "devices" / device / "log.txt"
            raise RunFailed(f"{device} ended with exit status {code}: {_last_line(log)}; its log: {log}")
    if judge.exitcode not in (None, 0):
        log = state.out / "evaluator.log"
        raise RunFailed(f"the evaluator ended with {judge.exitcode}: {_last_line(log)}; its log: {log}")
    if state.devices and all(s.process.exitcode == -signal.SIGKILL for s in state.devices.values()):
        raise RunFailed(f"every device was killed; logs: {state.out / 'devices'}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")


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


def _acted_out(out: Path, device: str) -> list[dict[str, object]]:
    """What a device of a virtual run did as its scenario says, at its own time."""
    lines = read_lines(out / "devices" / device / "events.jsonl")
    return [
        {"round": e["at_round"], "kind": e["kind"], "device": device, "t_s": e["t_s"]}
        for e in lines
        if e["event"] == "scripted"
    ]


def _write_run(state: Run) -> None:
    if state.scenario.clock == "virtual":
        state.events += [event for device in state.devices for event in _acted_out(state.out, device)]
    devices = {d: {"pid": s.process.pid, "exit": s.process.exitcode} for d, s in state.devices.items()}
    record = {
        "devices": devices,
        "events": state.events,
        "epoch_ns": state.epoch_ns,
        "ended_s": state.seconds(),
    }
    (state.out / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _addresses(scenario: Scenario) -> dict[str, str]:
    """A loopback port for each device, outside the range that outgoing connections are given."""
    return dict(zip(scenario.all_devices, map(_address, _free_ports(len(scenario.all_devices))), strict=True))


def _address(port: int) -> str:
    return f"tcp://127.0.0.1:{port}"


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 30_000), 4000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RunFailed(f"no {count} free ports between 10000 and 30000")
