"""`unweft bench memory`: what each device of a scenario needs beside the base model that all devices share.

The devices train for a few rounds, without events. Their memory is read twice a second, and the largest
value counts. Then one learner with the blocks of all devices trains in a process of its own, in two ways in
turn: with foreign blocks as low-rank factors where `keeps_factors` keeps them, and folded into private dense
weights.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from coordinator_free.identifiers import BlockKey
from emulation.bench.harness.crowd import Crowd, Memory, crowd
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.processes import crew
from emulation.launch.forkserver import PRELOAD
from emulation.scenario.events import ChurnConfig
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.lora import adapted_model
from peers.models.loader import load_model
from peers.tasks import make_task

ROUNDS = 3
TIMED = 3  # repetitions of the steps of a round, each way
MOST_OWN_MB = 700.0
ENDLESS = 1_000_000  # rounds
OWNER = "d0"  # whose steps are timed
LIMIT_S = 900.0  # of the rounds
OWN = "beyond shared pages (USS)"
SHARED = "with its share of shared pages (PSS)"
FACTORS, FOLDED = "low-rank factors", "folded into dense weights"


def run(scenario: Scenario, rounds: int = ROUNDS, timed: int = TIMED) -> Findings:
    """Measure the devices that the scenario starts with. rounds: that are closed by all of them.

    Raises InputError with a virtual clock and for a scenario that is not possible, and RuntimeError if a
    device ends.
    """
    if scenario.clock == "virtual":
        raise InputError("clock: 'virtual'; allowed: 'real', since only processes have memory of their own")
    check_against_model(scenario)
    say = Console(stderr=True, highlight=False).print
    longer = scenario.round.model_copy(update={"count": ENDLESS})  # the benchmark ends the run
    alone = scenario.model_copy(update={"event": (), "churn": ChurnConfig(), "round": longer})
    found = Findings("Memory of a device beside the shared base model", "unweft bench memory")
    with tempfile.TemporaryDirectory() as folder, crowd(alone, Path(folder)) as devices:
        names = [f"d{n}" for n in range(alone.devices.count)]
        devices.start(*names)
        say(f"{len(names)} devices train for {rounds} rounds")
        own, shared = _largest(devices, rounds)
    found.measures = [
        Measure("memory of a device", OWN, "MB", own, most=MOST_OWN_MB),
        Measure("memory of a device", SHARED, "MB", shared),
    ]
    say(f"steps of one device with {len(names) - 1} foreign blocks")
    with crew(PRELOAD) as child:
        remote = child.remote(StepTimes, alone)
        remote.begin("measure", timed)
        weights, folded, factors = remote.result(LIMIT_S)
    steps = f"{alone.round.local_steps} local steps"
    found.measures += [
        Measure("base model", "its weights, which all devices share", "MB", (weights,)),
        Measure(steps, FOLDED, "s", folded),
        Measure(steps, FACTORS, "s", factors, reference=FOLDED, most=1.0),
    ]
    found.notes = [f"model {alone.model.name}, {alone.model.dtype}; memory: the largest value of each device"]
    return found


def _largest(devices: Crowd, rounds: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The largest USS and PSS of each device until all have closed so many rounds, in MB."""
    largest: dict[str, Memory] = {}

    def done() -> bool:
        for name, now in devices.memory().items():
            before = largest.get(name, Memory(0, 0))
            largest[name] = Memory(max(before.uss, now.uss), max(before.pss, now.pss))
        return all(len(of) >= rounds for of in devices.rounds.values())

    if not devices.wait(done, time.monotonic() + LIMIT_S):
        raise RuntimeError(f"{rounds} rounds took more than {LIMIT_S:g} s")
    return tuple(m.uss / 1e6 for m in largest.values()), tuple(m.pss / 1e6 for m in largest.values())


class StepTimes:
    """The learner of d0 with the blocks of all devices of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        config = scenario.device_config()
        torch.set_num_threads(config.model.threads)
        loaded = load_model(config.model)
        self._weights_mb = sum(p.numel() * p.element_size() for p in loaded.model.parameters()) / 1e6
        examples = make_task(config).train_examples(OWNER)
        self._learner = Learner(loaded, config, loaded.encode(examples, config.data.max_length), OWNER)
        self._steps = config.round.local_steps
        self._foreign = [BlockKey(f"d{n}", 0) for n in range(1, scenario.devices.count)]
        for slot, key in enumerate(self._foreign, start=1):
            self._learner.add_block(key, slot)
        self._learner.set_own(BlockKey(OWNER, 0), 0)

    def measure(self, timed: int) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        """The base model's MB, and the seconds of a round's steps folded and with factors, in turn."""
        kept = adapted_model.LARGE
        times: dict[float, list[float]] = {
            math.inf: [],
            kept: [],
        }  # by the least size of a module with factors
        try:
            for repetition in range(-1, timed):
                for least, found in times.items():
                    adapted_model.LARGE = least  # type: ignore[assignment]
                    seconds = self._round(repetition + 1)
                    if repetition >= 0:  # the first ones warm up
                        found.append(seconds)
        finally:
            adapted_model.LARGE = kept
        return self._weights_mb, tuple(times[math.inf]), tuple(times[kept])

    def _round(self, number: int) -> float:
        """The seconds of a round's steps. All foreign blocks have changed, so they are placed anew."""
        for key in self._foreign:
            for group in self._learner.groups:
                self._learner.write(key, group, self._learner.read(key, group) + 1e-4)
        begin = time.perf_counter()
        self._learner.train(number, self._steps, False)
        return time.perf_counter() - begin
