"""Runs with hostile members (`unweft bench hostile`, `unweft bench churn --hostile`).

A hostile device runs the honest code. Beside it, it sends hostile messages to all members, on links of its
own, which its honest code does not close. Every other device counts the hostile messages that reach it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from coordinator_free.membership.signed_records import Status
from emulation.analysis.records import write_whole
from emulation.bench.harness.hostile_messages import HostileMessages
from emulation.bench.harness.whole_run import run_command
from emulation.launch import local, run_loop
from emulation.launch.errors import RunFailed
from emulation.launch.local import LocalBackend
from emulation.launch.ports import loopback_ports
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.scenario.loading import load
from peers.learning.learner import Learner
from peers.runtime.driver import Driver
from peers.runtime.main import process_main
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import make_driver
from transport.links.interface import Links, Received
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity
from transport.shaping.accounting import Accounts
from transport.wire.codec_names import CODECS
from transport.wire.messages import Hello
from transport.wire.packing import CODES, PREFIX

PROGRAM = "from emulation.bench.harness.hostile_member import main; main()"
RECEIVED = "hostile_received.json"  # in the folder of an honest device: hostile messages by type
FIRST_NUMBER = 1 << 61  # sequence number of the first hostile message: above all honest ones
BATCH = 20  # messages to each device between two pauses
SAVE_S = 0.5  # between two writes of RECEIVED
ROOM_S = 0.2  # longest wait for room in a link
NAMES = {code: message.__name__ for message, code in CODES.items()}
_tasks: set[asyncio.Task[None]] = set()


@dataclass(frozen=True)
class Plan:
    """An attack. `devices`: the hostile ones. `messages`: to be delivered to the others, in all.

    `most_s`: the attack ends after so many seconds. `ends_run`: the run ends with the attack.
    """

    devices: tuple[str, ...] = ()
    messages: int = 1 << 40
    per_second: float = 1000.0  # of one hostile device to one other device, at most
    most_s: float = 1e9
    ends_run: bool = False
    evicts: bool = True
    invents: bool = True


def hostile_run(scenario: str, out: Path, plan: Plan, timeout_s: float | None = None) -> None:
    """Run a scenario (TOML text) with an attack into the new folder `out`, in a child process.

    Raises RuntimeError if the run fails or takes longer than `timeout_s`.
    """
    file = out.with_name(f"{out.name}.toml")
    file.write_text(scenario, encoding="utf-8")
    run_command(
        sys.executable, "-c", PROGRAM, json.dumps(asdict(plan)), str(file), str(out), timeout_s=timeout_s
    )


def main() -> None:
    """The child process of `hostile_run`."""
    given, file, out = sys.argv[1:]
    plan = Plan(**json.loads(given))
    try:
        run_loop.run(load(Path(file)), Path(out), Console(), partial(_prepare, plan=plan))
    except RunFailed as error:
        sys.exit(str(error))


def received(out: Path) -> dict[str, Counter[str]]:
    """The hostile messages that reached each device of a run, by type of message."""
    files = (out / "devices").glob(f"*/{RECEIVED}")
    return {file.parent.name: Counter(json.loads(file.read_text(encoding="utf-8"))) for file in files}


# -- the launcher ----------------------------------------------------------------------------------------
def _prepare(state: RunState, console: Console, plan: Plan) -> LocalBackend:
    make = partial(HostileBackend, plan=plan, process=partial(_process, plan))
    return local.prepare(state, console, make, loopback_ports)  # over TCP, where an address may be any name


@dataclass(kw_only=True)
class HostileBackend(LocalBackend):
    """A run in which the end of a hostile device is no failure and keeps nobody waiting."""

    plan: Plan
    _told: bool = field(default=False, init=False)
    _started_s: float | None = field(default=None, init=False)  # when all honest devices had closed a round

    def running(self) -> dict[str, DeviceStatus]:
        statuses = super().running()
        honest = [d for d in statuses if d not in self.plan.devices and statuses[d].running]
        if self.plan.ends_run and not self._told and self._attack_is_over(honest):
            self._told = True
            for device in honest:
                self.signal(device, "end")
        for device in self.plan.devices if statuses and not honest else ():
            if device in statuses and statuses[device].running:
                self.signal(device, "crash")
        return {d: self._pardoned(d, status) for d, status in statuses.items()}

    def _attack_is_over(self, honest: Iterable[str]) -> bool:
        """A device that is told to end before its first round has no handler for the signal."""
        if any(self.state.last_round.get(device, -1) < 0 for device in honest):
            return False
        if self._started_s is None:
            self._started_s = self.state.seconds()
        done = not self.state.pending and delivered(self.state.out) >= self.plan.messages
        return done or self.state.seconds() > self._started_s + self.plan.most_s

    def _pardoned(self, device: str, status: DeviceStatus) -> DeviceStatus:
        if device not in self.plan.devices:
            return status
        return replace(status, exits=tuple(None if code is None else 0 for code in status.exits))


def delivered(out: Path) -> int:
    """The number of hostile messages that reached the devices of a run."""
    return sum(counts.total() for counts in received(out).values())


# -- the devices -----------------------------------------------------------------------------------------
def _process(plan: Plan, spec: DeviceSpec, lifeline: Connection) -> None:
    make = _make_hostile if spec.id in plan.devices else _make_counting
    process_main(spec, lifeline, partial(make, plan))


def _make_counting(
    plan: Plan,
    spec: DeviceSpec,
    links: Links,
    accounts: Accounts,
    learner: Learner,
    recorder: Recorder,
    identity: DeviceIdentity,
) -> Driver:
    counting: Any = CountingLinks(links, recorder.folder / RECEIVED)
    return make_driver(spec, counting, accounts, learner, recorder, identity)


class CountingLinks:
    """The links of a device, which count the hostile messages that they deliver. `file`: for the counts."""

    def __init__(self, links: Links, file: Path) -> None:
        self._links, self._file = links, file
        self._counts: Counter[str] = Counter()
        if file.exists():  # of an earlier life
            self._counts.update(json.loads(file.read_text(encoding="utf-8")))
        self._saved_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._links, name)

    async def recv(self) -> Received:
        """The next message of any peer."""
        message = await self._links.recv()
        header = message.frames[0]
        if len(header) >= PREFIX.size:
            _, _, code, number, _, _ = PREFIX.unpack_from(header)
            if number >= FIRST_NUMBER:
                self._counts[NAMES.get(code, "unknown")] += 1
                self._save()
        return message

    def _save(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._saved_s + SAVE_S:
            self._saved_s = now_s
            with suppress(OSError):
                write_whole(self._file, json.dumps(self._counts))


def _make_hostile(
    plan: Plan,
    spec: DeviceSpec,
    links: Links,
    accounts: Accounts,
    learner: Learner,
    recorder: Recorder,
    identity: DeviceIdentity,
) -> Driver:
    driver = make_driver(spec, links, accounts, learner, recorder, identity)
    source = HostileMessages(
        (spec.config.seed, spec.id),
        spec.id,
        identity.for_run(spec.run),
        learner.groups,
        _hello(spec, learner),
        rounds=spec.config.round.count,
        slots=spec.config.adapter.max_devices,
        evicts=plan.evicts,
        invents=plan.invents,
    )
    task = asyncio.get_running_loop().create_task(_attack(plan, driver, spec, source))
    _tasks.add(task)
    return driver


def _hello(spec: DeviceSpec, learner: Learner) -> Hello:
    """The hello of an honest device."""
    config = spec.config
    abilities = [f"mixing:{config.mixing.mode}", f"clock:{config.clock}", *(f"codec:{c}" for c in CODECS)]
    return Hello(spec.advertise, learner.fingerprint.to_dict(), True, abilities, 0)


async def _attack(plan: Plan, driver: Driver, spec: DeviceSpec, source: HostileMessages) -> None:
    protocol, links = driver.protocol, ZmqLinks(spec.id, spec.listen, spec.keys)
    until_s = time.monotonic() + plan.most_s
    while protocol.round < 0:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    try:
        for number in count(FIRST_NUMBER):
            source.members, source.epoch = list(protocol.members), protocol.round
            for device, address in _victims(plan, driver, source).items():
                links.connect(device, address)
                if not links.send(device, source.next_frames(time.monotonic_ns(), number)):
                    await links.wait_writable(device, ROOM_S)
            if number % BATCH == 0:
                await asyncio.sleep(BATCH / plan.per_second)
                if time.monotonic() > until_s or delivered(Path(spec.out)) >= plan.messages:
                    break
    finally:
        await links.close()


def _victims(plan: Plan, driver: Driver, source: HostileMessages) -> dict[str, str]:
    """The addresses of the honest devices that have not said goodbye. They may count as crashed."""
    others = {r.device for r in source.members} - {*plan.devices} - source.ghosts.keys()
    newest = filter(None, map(driver.protocol.members.newest, sorted(others)))
    return {r.device: r.address for r in newest if r.status not in (Status.LEFT, Status.RETIRED)}
