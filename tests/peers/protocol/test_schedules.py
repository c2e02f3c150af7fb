"""Random schedules of joins, leaves, crashes, stalls and partitions: in the end live devices agree."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from tests.support.simulated import MILLI, SECOND, Network, small_config
from tests.support.simulated_checks import Churn, agreed

KINDS = ["leave", "retire", "crash", "stall", "partition", "join", "join", "return"]
SLOTS = 16


class Step(NamedTuple):
    """An event after a pause. pick: selects the device."""

    pause_s: float
    kind: str
    pick: int


steps = st.builds(
    Step, st.sampled_from([0.0, 0.02, 0.3, 1.0, 6.0]), st.sampled_from(KINDS), st.integers(0, 9)
)


class Schedule(Churn):
    """Performs the steps that are possible; at least two training devices always stay."""

    def happen(self, step: Step) -> None:
        self.net.run(step.pause_s)
        living = [device.name for device in self.net]
        if step.kind in ("join", "return"):
            known = self.absent() if step.kind == "return" else [self._newcomer(step.pick)]
            if known and len(living) < 6:
                event(step.kind)
                self.net.add(known[step.pick % len(known)], *living, train_ns=1 * SECOND)
        elif step.kind == "partition":
            event(step.kind)
            self._cut(set(living[:: 2 + step.pick % 2]), 1.0 + 2 * step.pick)
        elif sum(device.round >= 0 for device in self.net) > 2:
            event(step.kind)
            self.strike(step.kind, self.net[living[step.pick % len(living)]], 1.0 + step.pick)

    def _cut(self, side: set[str], seconds: float) -> None:
        """Lose all messages between the two sides for a while."""
        cut = self.net.loses = lambda source, target, message: (source in side) != (target in side)

        def heal() -> None:
            if self.net.loses is cut:  # no later partition has replaced this one
                self.net.loses = lambda source, target, message: False

        self.net.at(self.net.now + int(seconds * SECOND), heal)

    def _newcomer(self, pick: int) -> str:
        """A new id; every second one prefers a slot that is taken."""
        return f"d{len(self.net.devices) + SLOTS * (pick % 2) - pick % 2}"


@settings(max_examples=15, phases=set(Phase) - {Phase.explain})
@given(
    size=st.integers(2, 4),
    kind=st.sampled_from(["full", "ring", "ring-chords"]),
    mode=st.sampled_from(["average", "newest"]),
    schedule=st.lists(steps, min_size=1, max_size=7),
    longest_ms=st.sampled_from([1, 30, 300]),
    seed=st.integers(0, 2**16),
)
def test_after_any_schedule_live_devices_agree_on_members_blocks_and_slots(
    size: int, kind: str, mode: str, schedule: list[Step], longest_ms: int, seed: int
) -> None:
    draw = random.Random(seed)
    shape = {"mixing": {"mode": mode}, "topology": {"kind": kind}, "adapter": {"max_devices": SLOTS}}
    config = small_config(**shape, round={"deadline_s": 4.0})
    net = Network(config, lambda: draw.randint(1, longest_ms) * MILLI)
    net.cohort(size, train_ns=1 * SECOND)
    net.run(3.0)
    running = Schedule(net)
    for step in schedule:
        running.happen(step)
    net.run(90.0)  # a crash is detected after 5 s; a joiner asks all devices twice
    assert agreed(net) and all(device.round >= 0 for device in net)
    slots = next(iter(net)).slots
    assert len(set(slots.values())) == len(slots)
    assert not running.left & set(slots)
