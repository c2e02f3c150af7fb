"""Several failure detectors in a simulated network that loses, delays and repeats messages."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator_free.membership.suspicion import Limits, RecordVersion
from coordinator_free.membership.swim import (
    Ack,
    Action,
    AskHelp,
    Confirm,
    Correct,
    Nack,
    Ping,
    Refute,
    Settings,
    Spread,
    Swim,
)

MILLI = 1_000_000
PERIOD, ACK, HOP = 500 * MILLI, 250 * MILLI, 5 * MILLI
SETTINGS = Settings(PERIOD, ACK, 3, 8, Limits(PERIOD, alpha=4, beta=6, confirmations=3))
LONGEST_NS = 6 * 4 * PERIOD  # a suspicion of at most 10 devices: beta * alpha * period
Event = Callable[[int], list[Action]]


class Node:
    """A detector and the part of a device that keeps the table and tells all members."""

    def __init__(self, name: str, everyone: list[str], seed: int) -> None:
        self.name = name
        self.swim = Swim(name, SETTINGS, random.Random(f"{seed}/{name}"), 0)
        self.said = {other: RecordVersion(other, 0, 1) for other in everyone}
        self.dead: set[str] = set()
        self.alive = True
        self.asleep_until = 0
        self.know()

    def know(self) -> None:
        living = {name: s for name, s in self.said.items() if name not in self.dead}
        self.swim.update_members(living, living)

    def heard(self, version: RecordVersion) -> list[Action]:
        if self.said[version.device] < version:
            self.said[version.device] = version
            self.know()
        return []


class World(RuleBasedStateMachine):
    """Time advances from event to event; rules decide which messages are lost and which devices die or
    stop.
    """

    @initialize(size=st.integers(2, 8), seed=st.integers(0, 2**16))
    def start(self, size: int, seed: int) -> None:
        names = [f"d{i}" for i in range(size)]
        self.nodes = {name: Node(name, names, seed) for name in names}
        self.draw = random.Random(seed)
        self.loss = 0.0
        self.now = 0
        self.mail: list[tuple[int, int, str, Event]] = []  # when, number, to whom, what
        self.count = 0
        self.confirmed: list[tuple[str, Confirm, int]] = []

    # -- what may happen -----------------------------------------------------------------------------
    @rule(loss=st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    def weather(self, loss: float) -> None:
        self.loss = loss

    @rule(which=st.integers(0, 7))
    def die(self, which: int) -> None:
        living = [node for node in self.nodes.values() if node.alive]
        if len(living) > 2:
            living[which % len(living)].alive = False

    @rule(which=st.integers(0, 7), seconds=st.floats(0.05, 40))
    def stall(self, which: int, seconds: float) -> None:
        node = list(self.nodes.values())[which % len(self.nodes)]
        node.asleep_until = self.now + int(seconds * 1000) * MILLI

    @rule(seconds=st.floats(0.01, 20))
    def wait(self, seconds: float) -> None:
        self.run(self.now + int(seconds * 1000) * MILLI)

    @rule()
    def clear_up(self) -> None:
        """In good weather everyone who can be found is, and nobody new is declared dead who lives.

        Except by those whom it holds for dead itself, since worse weather: to these it does not answer until
        the network has healed, which is not the detector's work (peers/runtime/partition.py).
        """
        self.loss = 0.0
        awake = max([self.now, *(node.asleep_until for node in self.nodes.values())])
        self.run(awake + LONGEST_NS)
        before = len(self.confirmed)
        self.run(self.now + 10 * PERIOD * (1 + SETTINGS.worst_health) + LONGEST_NS)
        for name, confirm, _ in self.confirmed[before:]:
            about = self.nodes[confirm.about.device]
            assert not about.alive or name in about.dead
        for node in self.living():
            believed = {name for name in node.said if name not in node.dead}
            assert not [name for name in believed if not self.nodes[name].alive]
            assert not [name for name in believed if name in node.swim.suspicions]

    # -- what always holds ---------------------------------------------------------------------------
    @invariant()
    def rules_are_kept(self) -> None:
        for node in self.nodes.values():
            assert 0 <= node.swim.health.score <= SETTINGS.worst_health
            assert node.name not in node.swim.suspicions
            assert not [name for name in node.dead if name in node.swim.suspicions]
        for name, confirm, at in self.confirmed:
            assert confirm.about.device != name
            assert at - confirm.suspected_ns >= 4 * PERIOD  # alpha * 1 * period, however many agree

    # -- the machinery -------------------------------------------------------------------------------
    def living(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.alive]

    def run(self, end: int) -> None:
        while True:
            timers = [
                (max(n.swim.next_ns(), n.asleep_until, self.now), -1, n.name, n.swim.tick)
                for n in self.living()
            ]
            at, number, name, event = min([*timers, *self.mail], key=lambda e: e[:3])
            if at > end:
                self.now = max(self.now, end)
                return
            self.now = max(self.now, at)
            node = self.nodes[name]
            if number >= 0:
                self.mail.remove((at, number, name, event))
                if node.asleep_until > self.now:
                    self.mail.append((node.asleep_until, number, name, event))
                    continue
            if node.alive:
                for action in event(self.now):
                    self.perform(node, action)

    def send(self, to: str, event: Event) -> None:
        if self.draw.random() >= self.loss:
            self.count += 1
            self.mail.append((self.now + HOP, self.count, to, event))

    def perform(self, node: Node, action: Action) -> None:
        match action:
            case Ping(to, number):
                self.send(to, lambda now: [Ack(node.name, number)])
            case Ack(to, number):
                self.send(to, lambda now: self.nodes[to].swim.on_ack(now, number))
            case Nack(to, number):
                self.send(to, self.nack(to, node.name, number))
            case AskHelp(to, target, number):
                self.send(to, lambda now: self.nodes[to].swim.on_ping_request(now, node.name, target, number))
            case Spread(about, accuser, again):
                for to in [about.device] if again else [n for n in self.nodes if n != node.name]:
                    self.send(to, self.accusation(to, node.name, about, accuser))
            case Correct(to, device):
                self.send(to, self.word(to, node.said[device]))
            case Refute():
                mine = node.said[node.name]
                self.say(node, mine._replace(lamport=mine.lamport + 1))
            case Confirm(about):
                self.confirmed.append((node.name, action, self.now))
                node.dead.add(about.device)
                node.know()

    def accusation(self, to: str, source: str, about: RecordVersion, accuser: str) -> Event:
        return lambda now: self.nodes[to].swim.on_suspect(now, source, about, accuser)

    def nack(self, to: str, source: str, number: int) -> Event:
        def event(now: int) -> list[Action]:
            self.nodes[to].swim.on_nack(source, number)
            return []

        return event

    def word(self, to: str, version: RecordVersion) -> Event:
        return lambda now: self.nodes[to].heard(version)

    def say(self, node: Node, version: RecordVersion) -> None:
        node.heard(version)
        for to in self.nodes:
            if to != node.name:
                self.send(to, self.word(to, version))


def test_a_suspect_is_told_again_before_its_deadline_if_the_first_message_was_lost() -> None:
    """Two of six dead make everybody slow to come round to the one that it suspects."""
    for seed in range(20):
        world = World()
        world.start(size=6, seed=seed)
        world.die(which=0)
        world.die(which=0)
        world.weather(loss=1.0)
        world.wait(seconds=1.0)
        world.clear_up()


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=30, stateful_step_count=12)
TestWorld.pytestmark = pytest.mark.timeout(240)  # type: ignore[attr-defined]  # seconds here; a busy machine takes a minute
