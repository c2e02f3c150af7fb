"""`unweft run --on compose`: each device is a container; they share the run's folder, the harness is outside.

What the local launcher does with processes, this does through docker: start devices, inject the scenario's
events, watch, judge, leave nothing behind.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from statistics import median

from rich.console import Console

from emulation.analysis.evaluator import DONE_MARKER
from emulation.analysis.evaluator import process_main as evaluate_run
from emulation.analysis.records import Tail, read_lines, write_run
from emulation.launch.device_scripts import shown
from emulation.launch.local import PRELOAD, RunFailed, _no_interrupt
from emulation.launch.run_state import RunState
from emulation.report.terminal import Progress
from emulation.scenario.events import ARRIVALS, GONE, OF_THE_NETWORK, EventConfig
from emulation.scenario.schema import Scenario
from emulation.testbed import epoch, id_leases, run_folder, start_gate
from emulation.testbed.docker import SIGNALS, Container, DockerFailed, Project, free_subnet
from peers.errors import InputError
from peers.runtime import partition
from transport.security import keys

POLL_S = 0.5
COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"
FILE_VARIABLE = "UNWEFT_COMPOSE_FILE"
KILLED = 137  # 128 + SIGKILL


@dataclass(kw_only=True)
class Run(RunState):
    """The state of a run of containers."""

    project: Project
    containers: dict[str, Container] = field(default_factory=dict)  # by device
    tails: dict[str, Tail] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)

    def running(self) -> dict[str, Container]:
        """Those that take part; who has no id yet is about to."""
        unnamed = {c.name for c in self.containers.values()}
        return {
            device: c
            for device, c in self.containers.items()
            if c.live and (device in unnamed or start_gate.is_open(self.out, device))
        }

    def returns(self, device: str) -> bool:
        """Whether the scenario has it come back yet."""
        return any((event.kind, event.device) == ("return", device) for event in self.pending)


def run(scenario: Scenario, out: Path, console: Console) -> int:
    """Run a scenario in containers; 0 when every device that was to finish has finished.

    Raises InputError for what containers cannot do, RunFailed; KeyboardInterrupt passes through. In each case
    no container, network or volume of the run is there when this returns.
    """
    _check(scenario)
    file = _compose_file()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unweft-keys-") as secret:
        _make_keys(scenario, Path(secret) / "keys")
        files = (file, _mounts(scenario, Path(secret) / "mounts.json"))
        project = Project(_name(out), files, _variables(scenario, out, Path(secret)))
        _build(project, console)
        project = _on_subnet(project)
        run_folder.begin(out, scenario)
        for device in scenario.initial_devices:
            start_gate.open_to(out, device)
        with _judged(scenario, out) as evaluator, _up(project, scenario):
            state = Run(
                scenario=scenario,
                out=out,
                epoch_ns=epoch.read(out) or 0,
                pending=list(scenario.events),
                project=project,
            )
            try:
                _live(state, evaluator, console)
            finally:
                _write_run(state)
    _say_memory(out, console)
    return 0


def _on_subnet(project: Project) -> Project:
    """As late as can be: a build takes minutes, and others start networks too."""
    if os.environ.get("UNWEFT_SUBNET"):
        return project
    try:
        return replace(
            project, variables={**project.variables, "UNWEFT_SUBNET": free_subnet(project.execute)}
        )
    except DockerFailed as error:
        raise RunFailed(str(error)) from None


# -- what it is started with -------------------------------------------------------------------------------
def _check(scenario: Scenario) -> None:
    if scenario.clock == "virtual":
        raise InputError("--on compose: clock = 'virtual' is for processes of one launcher; allowed: 'real'")


def _compose_file() -> Path:
    """Raises InputError where it is not: a package that was installed without its repository."""
    file = Path(os.environ.get(FILE_VARIABLE, COMPOSE_FILE))
    if not file.is_file():
        raise InputError(
            f"{FILE_VARIABLE}: {file} is not there; allowed: the repository's docker-compose.yml"
        )
    return file


def _name(out: Path) -> str:
    """A project's name: lower case, and no other run's."""
    return "unweft-" + re.sub(r"[^a-z0-9]+", "-", f"{out.name}-{os.getpid()}".lower()).strip("-")


def _make_keys(scenario: Scenario, folder: Path) -> None:
    """Made for one run; in no file that is kept."""
    folder.mkdir(mode=0o700)
    if scenario.keys.enabled:
        keys.generate(folder, scenario.all_devices if scenario.keys.allow_list else ())


def _variables(scenario: Scenario, out: Path, secret: Path) -> Mapping[str, str]:
    """For docker-compose.yml. Containers write as this user: the run's folder is on this machine."""
    return {
        "UNWEFT_DEVICES": str(scenario.devices.count),
        "UNWEFT_SCENARIO": "/results/scenario.toml",
        "UNWEFT_SET": "",
        "UNWEFT_GATES": f"/results/{start_gate.FOLDER}",
        "UNWEFT_RESULTS": str(out.absolute()),
        "UNWEFT_KEYS_FROM": str(secret / "keys"),
        "UNWEFT_USER": f"{os.getuid()}:{os.getgid()}",
        "UNWEFT_LEAVE_GRACE_S": str(scenario.membership.leave_grace_s),
    }


def _mounts(scenario: Scenario, file: Path) -> Path:
    """A second compose file: what the scenario names on this machine has the same name in a container."""
    named = (scenario.data.path, scenario.radio.trace, scenario.checkpoint.resume, scenario.model.name)
    paths = [Path(name).expanduser().absolute() for name in named if name and name != "tiny"]
    volumes = [
        {"type": "bind", "source": str(path), "target": str(path), "read_only": True}
        for path in paths
        if path.exists()
    ]
    file.write_text(json.dumps({"services": {"device": {"volumes": volumes}}}), encoding="utf-8")
    return file


def _build(project: Project, console: Console) -> None:
    """The image as the code is now."""
    console.print("building the image (the first time it takes minutes) …")
    try:
        project.compose("build", "device")
    except DockerFailed as error:
        raise RunFailed(str(error)) from None


@contextmanager
def _up(project: Project, scenario: Scenario) -> Iterator[None]:
    """The containers, from their start to their end, whatever happens. Who joins later waits from now on."""
    try:
        project.compose("up", "-d", "device")
        for device in scenario.all_devices[len(scenario.initial_devices) :]:
            project.join(device)
        yield
    except DockerFailed as error:
        raise RunFailed(str(error)) from None
    finally:
        with _no_interrupt():
            project.compose("down", "-v", "--timeout", "1")


@contextmanager
def _judged(scenario: Scenario, out: Path) -> Iterator[ForkServerProcess]:
    """The evaluator beside the run; none is left afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    lifeline, keep = context.Pipe(duplex=False)
    evaluator = context.Process(target=evaluate_run, args=(out, scenario, lifeline), name="evaluator")
    evaluator.start()
    try:
        yield evaluator
    finally:
        if evaluator.is_alive():
            evaluator.kill()
        evaluator.join()
        (out / DONE_MARKER).unlink(missing_ok=True)
        keep.close()
        lifeline.close()


# -- while it goes on --------------------------------------------------------------------------------------
def _live(state: Run, evaluator: ForkServerProcess, console: Console) -> None:
    with Progress(state.scenario, state.out, console) as progress:
        _look(state)
        while state.running() or not state.containers:
            _inject_due(state)
            progress.update(state.seconds())
            time.sleep(POLL_S)
            _look(state)
            _check_ends(state, evaluator)
            _ready_those_who_return(state)
        (state.out / DONE_MARKER).touch()
        while evaluator.is_alive():
            progress.update(state.seconds())
            evaluator.join(POLL_S)
        progress.update(state.seconds())
    _check_ends(state, evaluator)


def _look(state: Run) -> None:
    """Which containers there are, whose they are, and which round each device has closed."""
    by_host = {container.id: container for container in state.project.containers()}
    claimed = id_leases.owners(state.out)
    owners = {device: by_host[host] for device, host in claimed.items() if host in by_host}
    waiting = [c for c in by_host.values() if c.id not in {owner.id for owner in owners.values()}]
    state.containers = owners | {container.name: container for container in waiting}  # no id yet
    for device in owners:
        path = state.out / "devices" / device / "metrics.jsonl"
        for record in state.tails.setdefault(device, Tail(path)).read():
            state.last_round[device] = int(str(record["round"]))


def _ready_those_who_return(state: Run) -> None:
    """Their containers, once they have ended, are started again at once, and wait."""
    for device, container in state.containers.items():
        if not container.live and state.returns(device):
            start_gate.close_to(state.out, device)
            state.killed.discard(device)
            state.project.start(container)


def _inject_due(state: Run) -> None:
    for device in state.to_resume():
        if device in state.running():
            state.project.unpause(state.containers[device])
    while not state.over() and (event := state.due(partial(_waits, state))) is not None:
        state.pending.remove(event)
        state.note(event.round, event.kind, shown(event))
        _inject(state, event)


def _waits(state: Run, device: str) -> bool:
    """Started again, and ready to return."""
    container = state.containers.get(device)
    return container is not None and container.live and not start_gate.is_open(state.out, device)


def _inject(state: Run, event: EventConfig) -> None:
    device, project, running = event.device or "", state.project, state.running()
    if event.kind in OF_THE_NETWORK:
        _cut(state, event)
    elif event.kind in ARRIVALS:
        _tell_partition(state, device)
        start_gate.open_to(state.out, device)
    elif device in running and event.kind in GONE:
        state.killed |= {device} if event.kind == "crash" else set()
        project.signal(running[device], SIGNALS[event.kind])
    elif device in running:
        project.pause(running[device])
        state.resume_at.append((state.seconds() + (event.duration_s or 0.0), device))


def _cut(state: Run, event: EventConfig) -> None:
    """An emulated partition, as among processes: docker's networks know no groups."""
    running, state.partition = state.running(), event.groups
    for device in sorted({*running, *state.last_round}):  # one that is gone now may return
        _tell_partition(state, device)
        if device in running:
            state.project.signal(running[device], partition.SIGNAL.name)


def _tell_partition(state: Run, device: str) -> None:
    partition.write(state.out / "devices" / device, state.cut_off(device))


def _check_ends(state: Run, evaluator: ForkServerProcess) -> None:
    for device, container in state.containers.items():
        if container.exit == KILLED and device not in state.killed:  # from outside: a crash like any other
            state.killed.add(device)
            state.note(state.last_round.get(device, 0), "crash", device)
        elif container.exit not in (None, 0, KILLED):
            said = state.project.docker("logs", "--tail", "1", container.id).strip() or "no output"
            raise RunFailed(f"{device} ended with exit status {container.exit}: {said}")
    if evaluator.exitcode not in (None, 0):
        raise RunFailed(
            f"the evaluator ended with {evaluator.exitcode}; its log: {state.out / 'evaluator.log'}"
        )
    if state.containers and all(c.exit == KILLED for c in state.containers.values()):
        raise RunFailed("every device was killed")


# -- what is left of it ------------------------------------------------------------------------------------
def _write_run(state: Run) -> None:
    devices = {d: {"container": c.id, "exit": c.exit} for d, c in state.containers.items()}
    write_run(state.out, devices, state.events, state.epoch_ns, state.seconds())


def _say_memory(out: Path, console: Console) -> None:
    """What a device took at most."""
    lines = [line for path in (out / "devices").glob("*/events.jsonl") for line in read_lines(path)]
    peaks = [int(line["peak_rss_bytes"]) for line in lines if line["event"] == "finished"]
    if peaks:
        middle, most = median(peaks) / 1e6, max(peaks) / 1e6
        console.print(f"memory of a device: {middle:.0f} MB (median), {most:.0f} MB (most)", highlight=False)
