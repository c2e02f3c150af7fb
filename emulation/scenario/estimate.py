"""What a run will need (`unweft run --dry-run`). Bytes are counted. Memory and time are measured."""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from coordinator_free.averaging.topology import build
from coordinator_free.identifiers import BlockKey
from emulation.scenario.events import Population
from emulation.scenario.schema import Scenario
from peers.learning.learner import Learner

MEASURED_STEPS = 5
OWN = BlockKey("estimate", 0)


@dataclass(frozen=True)
class RunEstimate:
    """The estimates of a run. bytes_most: of all devices, without headers. Seconds are of the real clock."""

    devices: int  # the most at one time
    device_rounds: int  # closed rounds, summed over the devices
    block_bytes: int  # one block in radio.codec
    bytes_most: int
    step_s: float  # one local step, measured alone on this machine
    run_s: float  # local steps and links, without evaluation and waits
    device_memory_bytes: int  # resident memory of one process, most of it shared with the others


def make(scenario: Scenario, learner: Learner) -> RunEstimate:
    """RunEstimate a run. `learner`: without blocks; a few local steps train it."""
    block = learner.layout.block_bytes(scenario.radio.codec)
    rounds = list(_members_and_copies(scenario))
    sent = [_most_bytes(scenario, members, copies * block) for members, copies in rounds]
    step_s = _measure_step(learner, max(copies for _, copies in rounds), scenario.model.threads)
    device_rounds = sum(len(members) for members, _ in rounds)
    steps, cores = scenario.round.local_steps, os.cpu_count() or 1
    compute_s = sum(step_s * steps * max(1.0, len(members) / cores) for members, _ in rounds)
    links_s = sum(
        count / len(members) / scenario.radio.rate_Bps + 2 * scenario.radio.latency_s
        for count, (members, _) in zip(sent, rounds, strict=True)
    )
    return RunEstimate(
        devices=max(len(members) for members, _ in rounds),
        device_rounds=device_rounds,
        block_bytes=block,
        bytes_most=sum(sent),
        step_s=step_s,
        run_s=compute_s + (links_s if scenario.clock == "real" else 0.0),
        device_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _members_and_copies(scenario: Scenario) -> Iterator[tuple[list[str], int]]:
    """For each round: the live devices, and the blocks that each holds."""
    population = Population(scenario.initial_devices, scenario.on_crash)
    pending = list(scenario.events)
    for round_ in range(scenario.round.count):
        while pending and pending[0].round < round_:
            population.apply(pending.pop(0))
        yield list(population.live), population.slots


def _most_bytes(scenario: Scenario, members: list[str], held_bytes: int) -> int:
    """Every device sends all that it holds to each neighbour, as far as its budget goes."""
    degrees = dict(build(members, scenario.topology.shape(scenario.seed)).degree())
    return sum(min(degree * held_bytes, scenario.radio.budget_bytes) for degree in degrees.values())


def _measure_step(learner: Learner, blocks: int, threads: int) -> float:
    """Seconds of one local step: the median of a few, with as many blocks as the run holds."""
    torch.set_num_threads(threads)  # as in a device
    learner.set_own(OWN, 0)
    for slot in range(1, blocks):
        learner.add_block(BlockKey(f"estimate{slot}", 0), slot)
    return statistics.median(learner.train(round_, 1, False).seconds for round_ in range(MEASURED_STEPS))
