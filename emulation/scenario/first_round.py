"""Warnings at the start: local steps and updates that do not fit into a round."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator_free.averaging import topology
from coordinator_free.identifiers import BlockKey
from emulation.scenario.probe_period import cores
from emulation.scenario.schema import Scenario
from peers.learning.learner import Learner


def first_round_notes(scenario: Scenario, learner: Learner, device: str, measure: bool) -> Iterator[str]:
    """A line for each limit that an ordinary round exceeds.

    measure: take a local step or two of `device` to see how long one lasts. Changes the learner.
    """
    seconds = _steps_s(scenario, learner, device, measure)
    if seconds is not None and seconds > scenario.round.deadline_s:
        yield (
            f"round.deadline_s: {scenario.round.deadline_s:g} s end before the local steps of a round, about "
            f"{seconds:.0f} s: devices will mix without neighbours that are late; raise it, or lower "
            "round.local_steps or data.batch"
        )
    needed, neighbours = _own_updates(scenario, learner)
    room = int(scenario.radio.budget_bytes * (1 - scenario.radio.control_share))
    if needed * neighbours > room:
        enough = int(needed * neighbours / (1 - scenario.radio.control_share)) + 1
        yield (
            f"radio.budget_bytes: {scenario.radio.budget_bytes} bytes carry the own block, {needed} bytes in "
            f"{scenario.radio.codec}, to {room // needed} of {neighbours} neighbours in a round: others get "
            f"older versions; {enough} carry it to all"
        )


def _steps_s(scenario: Scenario, learner: Learner, device: str, measure: bool) -> float | None:
    """Seconds of a round's local steps if all devices share this machine's cores; None: not measured."""
    steps = scenario.round.local_steps
    if scenario.clock == "virtual":
        times = [scenario.compute.step_s, *scenario.compute.devices.values()]
        return steps * max(times)
    if not measure:
        return None
    learner.set_own(BlockKey(device, 0), 0)
    shared = steps * max(1.0, scenario.devices.count * scenario.model.threads / cores())
    seconds = shared * learner.train(0, 1, rehearse=False).seconds
    if seconds > scenario.round.deadline_s:  # the first step of a process also sets torch up
        seconds = min(seconds, shared * learner.train(1, 1, rehearse=False).seconds)
    return seconds


def _own_updates(scenario: Scenario, learner: Learner) -> tuple[int, int]:
    """Bytes of the own block, and the most neighbours of a device when the run begins."""
    needed = learner.layout.block_bytes(scenario.radio.codec)
    shape = scenario.topology.shape(scenario.seed)
    degrees = dict(topology.build(scenario.initial_devices, shape).degree)
    return needed, max(degrees.values(), default=0)
