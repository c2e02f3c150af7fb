"""From the losses of three learners to one decision, without a coordinator."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np

from coordinator_free.correction.graph_ladder import Bounds, edge, ladder
from coordinator_free.correction.network_mean import NetworkMean
from coordinator_free.correction.policies import decide
from coordinator_free.correction.policy_interface import (
    Decision,
    GroupAction,
    GroupView,
    Limits,
    Memory,
    View,
)
from coordinator_free.correction.residuals import (
    copies_size,
    pack,
    priorities,
    report_bytes,
    residuals,
    unpack,
)
from coordinator_free.identifiers import BlockKey
from peers.learning.count_sketch import Sketcher
from peers.learning.diagnosis import Options, diagnose
from peers.learning.learner import Learner
from peers.tasks import Example, encode
from tests.support.learners import fill, small_learner
from tests.support.tiny_models import WORDS, small_tokenizer

DEVICES = ["d0", "d1", "d2"]
KEYS = [BlockKey(device, 0) for device in DEVICES]
LIMITS = Limits(GroupAction(2), steps_max=4)
SIZE = 64


def device(own: int) -> Learner:
    """All three devices hold the same three blocks, and each has another own block."""
    learner = small_learner(device=DEVICES[own])
    for i, key in enumerate(BlockKey(name, 0) for name in DEVICES):
        if i == own:
            learner.set_own(key, i)
        else:
            learner.add_block(key, i)
        fill(learner, key, seed=i)
    return learner


def measured(learner: Learner, own: int) -> np.ndarray:
    texts = [Example(f"{WORDS[(i + own) % 9]} is", WORDS[-1 - own]) for i in range(16)]
    found = diagnose(
        learner.model,
        learner.layout,
        4.0,
        {key: learner._blocks[key] for key in learner._shown()},
        encode(texts, small_tokenizer(), 16),
        Sketcher(0, learner.layout, SIZE),
        Options(),
        np.random.default_rng(0),
    )
    return pack([g.observables(1.0, 0.01, 0.01, np.zeros(copies_size(SIZE))) for g in found.groups.values()])


def decided(node: NetworkMean, groups: tuple[str, ...]) -> Decision:
    mean = node.mean(KEYS)
    assert mean is not None
    means = unpack(mean.values, groups, 3)
    shares = priorities(means)
    shown = {
        g: GroupView(residuals(m, LIMITS.base.steps), shares[g].share, m.rate, m.eta, 1000.0)
        for g, m in means.items()
    }
    links = {edge(a, b): 1.0 for a, b in itertools.combinations(DEVICES, 2)}
    rungs = ladder(DEVICES, nx.path_graph(DEVICES), links, 0, Bounds())
    return decide("dominant", View(0, 5, shown, rungs, 0), LIMITS, Memory())


def test_all_devices_make_the_same_decision():
    learners = [device(i) for i in range(3)]
    nodes = {name: NetworkMean(report_bytes(3, SIZE) // 4, 16) for name in DEVICES}
    for i, name in enumerate(DEVICES):
        nodes[name].add_own(KEYS[i], 0, measured(learners[i], i))
    for source, to in [("d0", "d1"), ("d2", "d1"), ("d1", "d0"), ("d1", "d2")]:  # a line: d1 relays
        for report in nodes[source].unsent_reports(to):
            nodes[to].on_report(source, report)
    made = [decided(node, learners[0].groups) for node in nodes.values()]
    assert made[0] == made[1] == made[2]
    found = [mean for node in nodes.values() if (mean := node.mean(KEYS))]
    assert len(found) == len(nodes) and len({mean.digest for mean in found}) == 1
    assert made[0].reason.startswith("dominant: ")
    means = unpack(found[0].values, learners[0].groups, 3)
    assert all(0 < m.spread2 < m.energy for m in means.values())  # they share blocks and differ in data
