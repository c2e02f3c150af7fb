"""Runs a whole scenario in this process: all devices in one event loop, without sockets (docs/clocks.md).

The devices are the real ones: protocol, learner, shaper and virtual clock. Only the links and the thread of
the learner differ, so a run gives the adapters, bytes and times of separate processes, to the last bit. It
cannot give what only processes have: the memory and the CPU time of one device, and faults of real links.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torch

from emulation.analysis import forgotten_files
from emulation.analysis.evaluator import evaluate_run
from emulation.analysis.records import failure
from emulation.launch import interrupts
from emulation.launch.device_scripts import executed_events, not_executed, present_at_start
from emulation.launch.device_specs import DeviceSpecs
from emulation.launch.errors import RunFailed
from emulation.launch.ports import PORTS, loopback
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.errors import InputError, describe
from peers.learning.learner import Learner
from peers.models.loader import load_once
from peers.runtime.host import SHARED_PROCESS, Crashed
from peers.runtime.main import build_learner, identity_of
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import make_driver
from transport.clocks.virtual import life_name
from transport.links.memory_links import MemoryLinks
from transport.shaping.accounting import Accounts

LOOK_S = 0.1  # seconds between two looks for an interrupt
Lives = list[tuple[DeviceSpec, MemoryLinks]]
MakeLearner = Callable[[DeviceSpec], Learner]


def run(
    scenario: Scenario,
    out: Path,
    tags: Collection[str] | None = None,
    make_learner: MakeLearner | None = None,
) -> None:
    """Run a scenario and write the files of a run (docs/records.md).

    `tags`: of the snapshots to evaluate; None: all. `make_learner`: makes the learner of each life; None: as
    in a process of its own. Raises InputError for a real clock, and RunFailed.
    """
    if scenario.clock != "virtual":
        raise InputError("clock: 'real' does not fit one process for all devices; allowed: virtual")
    state = RunState(scenario=scenario, out=out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scenario.toml").write_text(dump(scenario), encoding="utf-8")
    torch.set_num_threads(scenario.model.threads)
    load_shared(scenario)
    try:
        with interrupts.held():  # raises at its end: within the event loop, asyncio would report it too
            state.devices = asyncio.run(_run_devices(state, make_learner or build_learner))
        evaluate_run(out, scenario, tags)
    finally:
        _end(state)


def load_shared(scenario: Scenario) -> None:
    """Load what all runs in this process share: the plugins and the base model. Later calls do nothing."""
    plugins.load(scenario.plugins)
    load_once(scenario.model)


def _end(state: RunState) -> None:
    state.events = executed_events(state.out, state.scenario.all_devices)
    state.pending = not_executed(state.scenario, state.events)
    state.write_record()
    with suppress(InputError, OSError):  # the summary names each file that still holds a forgotten block
        forgotten_files.correct(state.out, keep_snapshots=True)


async def _run_devices(state: RunState, make_learner: MakeLearner) -> dict[str, DeviceStatus]:
    """Run all lives of all devices to their ends; returns their statuses. Raises RunFailed."""
    lives = _make_lives(state)
    for _, links in lives:
        await links.start()
    tasks = [asyncio.create_task(_run_device(spec, links, make_learner)) for spec, links in lives]
    try:
        codes = await _unless_interrupted(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not codes:
        return {}
    exits: dict[str, tuple[int, ...]] = {}
    for (spec, _), code in zip(lives, codes, strict=True):
        exits[spec.id] = (*exits.get(spec.id, ()), code)
    return {device: _status(state, device, own) for device, own in exits.items()}


async def _unless_interrupted(tasks: list[asyncio.Task[int]]) -> list[int]:
    """The results of all tasks; none if the user interrupts the run now. Raises the first error of a task."""
    before = interrupts.received()
    while before or not interrupts.received():
        done, others = await asyncio.wait(tasks, timeout=LOOK_S, return_when=asyncio.FIRST_EXCEPTION)
        if not others or any(task.exception() for task in done):
            return [task.result() for task in tasks if task in done]
    return []


def _status(state: RunState, device: str, exits: tuple[int, ...]) -> DeviceStatus:
    folder = state.out / "devices" / device
    for code in exits:
        if state.failed(device, code):
            raise RunFailed(f"{device} ended with exit status {code}: {failure(folder)}")
    return DeviceStatus(running=False, exits=exits)


def _make_lives(state: RunState) -> Lives:
    """The spec and the links of each life: the initial devices first, then the others by their events."""
    specs = DeviceSpecs.choose(state, lambda count: [loopback(PORTS[n]) for n in range(count)])
    network: dict[str, MemoryLinks] = {}
    found: Lives = []
    for name in specs.addresses:
        device, _, life = name.partition("#")
        number = int(life or 0)
        initial = state.start.devices
        cohort = len(initial) if device in initial and not number else 0
        known = present_at_start(state.scenario, state.start, device, number)
        spec = specs.spec(device, number, cohort, known)
        found.append((spec, MemoryLinks(device, spec.listen, network, spec.keys)))
    return found


async def _run_device(spec: DeviceSpec, links: MemoryLinks, make_learner: MakeLearner) -> int:
    """Run one life of a device; returns its exit status, which is that of SIGKILL after a crash."""
    recorder = Recorder(Path(spec.out) / "devices" / spec.id, 0, spec.life)
    accounts = Accounts()
    try:
        learner = make_learner(spec)
        driver = make_driver(
            spec, links, accounts, learner, recorder, identity_of(spec, recorder), SHARED_PROCESS
        )
        return await driver.run()
    except Crashed:
        return -signal.SIGKILL
    except Exception as error:
        recorder.event(0, -1, "failed", {"reason": describe(error)})
        raise RunFailed(f"{life_name(spec.id, spec.life)}: {describe(error)}") from error
    finally:
        recorder.close()
        await links.close()
