"""Random schedules of leave, crash, join and return under random latencies: the living agree in the end."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from coordinator_free.membership import Key
from peers.protocol import State
from tests.peers.simulated import MILLI, SECOND, Network, small_config
from tests.peers.simulated_checks import agreed

KINDS = ["leave", "retire", "crash", "join", "return"]


class Step(NamedTuple):
    """What happens after a pause, and a number that picks whom it happens to."""

    pause_s: float
    kind: str
    pick: int


steps = st.builds(
    Step, st.sampled_from([0.0, 0.02, 0.3, 1.0, 6.0]), st.sampled_from(KINDS), st.integers(0, 9)
)


class Story:
    """Carries a schedule out as far as it makes sense: one newcomer at a time, someone always stays."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.left: set[Key] = set()
        self.ended_ns: dict[str, int] = {}

    def happen(self, step: Step) -> None:
        self.net.run(step.pause_s)
        if step.kind in ("join", "return"):
            self._come(step)
        else:
            self._go(step)

    def _come(self, step: Step) -> None:
        living = [device.name for device in self.net]
        known = self._absent() if step.kind == "return" else [f"d{len(self.net.devices)}"]
        if known and len(living) < 6 and not self._joining():
            device = known[step.pick % len(known)]
            event(step.kind)
            self.net.add(device, *living)

    def _go(self, step: Step) -> None:
        living = [device.name for device in self.net if device.round >= 0]
        if len(living) < 3 or (step.kind == "retire" and self._joining()):
            return
        device = living[step.pick % len(living)]
        event(step.kind)
        if step.kind != "retire":  # see test_a_device_that_returns_holds_what_it_left_behind_when_it_retired
            self.ended_ns[device] = self.net.now
        if step.kind == "crash":
            self.net.crash(device)
            return
        own = self.net[device].protocol.own
        if step.kind == "leave" and own is not None:
            self.left.add(own.key)
        self.net.signal(device, step.kind)

    def _absent(self) -> list[str]:
        """Who may return. A process takes seconds to start: what its earlier life sent has come by then."""
        return [
            d for d, at in self.ended_ns.items() if not self.net[d].live and self.net.now - at > 2 * SECOND
        ]

    def _joining(self) -> bool:
        """Nobody may have trained a newcomer's block yet: see test_two_devices_join_at_once."""
        return any(device.protocol.state in (State.JOIN, State.SETTLE) for device in self.net)


@settings(deadline=None, max_examples=25, phases=set(Phase) - {Phase.explain})
@given(
    size=st.integers(2, 4),
    kind=st.sampled_from(["full", "ring", "ring-chords"]),
    mode=st.sampled_from(["average", "newest"]),
    schedule=st.lists(steps, min_size=1, max_size=6),
    longest_ms=st.sampled_from([1, 30, 300]),
    seed=st.integers(0, 2**16),
)
def test_whatever_happens_the_living_agree_on_members_blocks_and_slots(
    size: int, kind: str, mode: str, schedule: list[Step], longest_ms: int, seed: int
) -> None:
    draw = random.Random(seed)
    config = small_config(mixing={"mode": mode}, topology={"kind": kind}, adapter={"max_devices": 16})
    net = Network(config, lambda: draw.randint(1, longest_ms) * MILLI)
    net.cohort(size, train_ns=300 * MILLI)
    net.run(2.0)
    story = Story(net)
    for step in schedule:
        story.happen(step)
    net.run(15.0)  # a crash is found after 5 s
    assert agreed(net)
    slots = next(iter(net)).slots
    assert len(set(slots.values())) == len(slots)
    assert not story.left & set(slots)
