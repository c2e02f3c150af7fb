"""Storms: partitions, losses, stalls, crashes, leaves, joins and returns at once; then a quiet time."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from tests.support.simulated import MILLI, SECOND, Network, small_config
from tests.support.simulated_checks import Churn, agreed

SLOTS = 16
KINDS = ["leave", "retire", "crash", "stall", "join", "return", "partition", "partition", "heal"]
CLEARS_S = 150.0  # for suspicions (12 s and more), reconnects to all evicted devices, a quarantine


class Step(NamedTuple):
    """An event after a pause. pick: selects the device."""

    pause_s: float
    kind: str
    pick: int


steps = st.builds(
    Step, st.sampled_from([0.0, 0.02, 0.3, 1.0, 6.0, 15.0]), st.sampled_from(KINDS), st.integers(0, 2**16)
)


class Storm(Churn):
    """A network with partitions and lost messages."""

    def __init__(self, net: Network, loss: float, seed: int) -> None:
        super().__init__(net)
        self.side = set[str]()
        draw = random.Random(seed)
        net.loses = lambda source, target, message: self._cut(source, target) or draw.random() < loss

    def _cut(self, source: str, target: str) -> bool:
        return (source in self.side) != (target in self.side)

    def happen(self, step: Step) -> None:
        self.net.run(step.pause_s)
        living = [device.name for device in self.net]
        match step.kind:
            case "partition":
                self.side = {name for i, name in enumerate(living) if step.pick >> i & 1}
            case "heal":
                self.side = set()
            case "join" | "return":
                self._come(step, living)
            case _ if sum(device.round >= 0 for device in self.net) > 2:
                self.strike(step.kind, self.net[living[step.pick % len(living)]], 0.5 + step.pick % 30)
        event(step.kind)

    def _come(self, step: Step, living: list[str]) -> None:
        gone = self.absent()
        newcomers = [f"d{len(self.net.devices)}", f"d{len(self.net.devices) + SLOTS}"]
        known = gone if step.kind == "return" else [d for d in newcomers if d not in self.net.devices]
        if known and len(living) < 7:
            name = known[step.pick % len(known)]
            if any(not self._cut(name, other) for other in living):
                self.net.add(name, *living, train_ns=1 * SECOND)

    def clear_up(self) -> None:
        self.side = set()
        self.net.run(CLEARS_S)


@settings(max_examples=15, phases=set(Phase) - {Phase.explain})
@given(
    size=st.integers(3, 7),
    kind=st.sampled_from(["full", "ring", "ring-chords"]),
    mode=st.sampled_from(["average", "newest"]),
    quarantine_s=st.sampled_from([3.0, 60.0]),
    schedule=st.lists(steps, min_size=1, max_size=8),
    longest_ms=st.sampled_from([1, 30, 200]),
    loss=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**16),
)
def test_after_every_storm_live_devices_agree_train_and_have_forgotten_the_leavers(
    size: int,
    kind: str,
    mode: str,
    quarantine_s: float,
    schedule: list[Step],
    longest_ms: int,
    loss: float,
    seed: int,
) -> None:
    draw = random.Random(seed)
    shape = {"mixing": {"mode": mode}, "topology": {"kind": kind}, "adapter": {"max_devices": SLOTS}}
    more = {"round": {"deadline_s": 4.0}, "membership": {"quarantine_s": quarantine_s}, "seed": seed}
    net = Network(small_config(**shape, **more), lambda: draw.randint(1, longest_ms) * MILLI)
    net.cohort(size, train_ns=1 * SECOND)
    storm = Storm(net, loss, seed)
    net.run(4.0)
    for step in schedule:
        storm.happen(step)
    storm.clear_up()
    names = {device.name for device in net}
    assert agreed(net) and {*net[min(names)].protocol.members.alive()} == names
    rounds = {device.name: device.round for device in net}
    net.run(10.0)
    assert all(device.round > rounds[device.name] >= 0 for device in net)
    slots = next(iter(net)).slots
    assert len(set(slots.values())) == len(slots)
    assert not storm.left & set(slots)
