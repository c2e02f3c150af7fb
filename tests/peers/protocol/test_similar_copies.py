"""`mixing.tolerance` in a whole network: fewer transfers, copies as with all transfers, losses that end."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.protocol import actions as do
from peers.protocol.similar_copies import REFRESH, applies, foreign_codec, is_refreshed
from tests.support.simulated import GROUPS, Network, Values, small_config
from transport.wire.messages import Request, Update

EARLY = Part(BlockKey("d0", 0), "early")


def slowing(device: str, round_: int) -> Values:
    """Local steps as training takes them: mostly one direction, smaller and smaller."""
    own = 1.0 + sum(map(ord, device)) % 7
    return 0.7**round_ * (np.array([1.0, own, -own]) + 0.1 * np.sin([round_, own * round_, 3 * round_]))


def trained(tolerance: float, kind: str, rounds: int, size: int = 6) -> Network:
    net = Network(small_config(mixing={"tolerance": tolerance}, topology={"kind": kind}))
    net.cohort(size, move=slowing)
    net.rounds(rounds)
    return net


def transfers(net: Network, first: int = 0) -> int:
    sent = [action for device in net for action in device.done(do.Publish)]
    return sum(len(action.parts) for action in sent if action.round >= first)


def worst(a: Network, b: Network) -> float:
    """The largest difference of a copy between two networks, relative to the norm of the copy."""
    return max(
        float(np.linalg.norm(x.values[part] - y.values[part]) / np.linalg.norm(y.values[part]))
        for x, y in zip(a, b, strict=True)
        for part in y.values
    )


@pytest.mark.parametrize(("kind", "rounds", "most"), [("full", 8, 1 / 4), ("ring-chords", 14, 2 / 3)])
def test_copies_stay_within_the_tolerance_for_fewer_transfers(kind: str, rounds: int, most: float) -> None:
    saving, sending = trained(0.02, kind, rounds), trained(0.0, kind, rounds)
    assert transfers(saving, first=rounds - 6) <= most * transfers(sending, first=rounds - 6)
    assert worst(saving, sending) < 0.03  # each copy is off by 0.02 at most; errors add up


def test_the_owner_sends_its_block_in_every_round() -> None:
    net = trained(0.02, "full", 8, size=3)
    for device in net:
        for action in device.done(do.Publish):
            assert {Part(BlockKey(device.name, 0), g) for g in GROUPS} <= {
                part for part, _, _ in action.parts
            }


def test_a_copy_that_its_receiver_lost_is_requested_and_sent_again() -> None:
    net = trained(0.02, "full", 1, size=3)
    net.loses = lambda source, target, message: (
        isinstance(message, Update) and (message.block, source, target) == ("d0", "d1", "d2")
    )
    net.rounds(3)
    asked = [a for a in net["d2"].done(do.Tell) if isinstance(a.message, Request) and a.peer == "d1"]
    assert {item[0] for tell in asked for item in tell.message.items} == {"d0"}
    net.loses = lambda *_: False
    net.rounds(3)
    cache = net["d2"].protocol._state.exchange.peer("d1").cache
    assert all(Part(BlockKey("d0", 0), group) in cache for group in GROUPS)


def test_lost_messages_of_the_owner_leave_no_lasting_difference() -> None:
    nets = [trained(tolerance, "full", 2, size=3) for tolerance in (0.02, 0.0)]
    for net in nets:
        net.loses = lambda source, target, message: (
            isinstance(message, Update) and (source, target) == ("d0", "d1")
        )
        net.rounds(3)
        net.loses = lambda *_: False
        net.rounds(9)
    assert worst(*nets) < 0.06


def test_after_a_leave_no_estimate_of_the_deleted_block_remains() -> None:
    net = trained(0.02, "full", 3, size=3)
    net.signal("d2", "leave")
    net.rounds(4)
    for device in net:
        assert all(part.block.device != "d2" for _, part in device.assumed.at)
        peers = device.protocol._state.exchange.peers.values()
        assert all(part.block.device != "d2" for peer in peers for part in peer.cache)


def test_every_part_has_its_turn_to_be_sent_in_any_case() -> None:
    turns = [version for version in range(100) if is_refreshed(EARLY, version)]
    assert len(turns) == 100 // REFRESH and {b - a for a, b in pairwise(turns)} == {REFRESH}


def test_foreign_copies_take_int8_only_within_the_tolerance_and_only_where_copies_are_averaged() -> None:
    def config(allocator: str = "fifo", **mixing: object) -> DeviceConfig:
        return DeviceConfig.model_validate({"mixing": mixing, "radio": {"allocator": allocator}})

    assert foreign_codec(config(tolerance=0.02)) == "int8"
    assert foreign_codec(config(tolerance=0.005)) is None
    assert [applies(config(mode=mode)) for mode in ("average", "newest", "paper-literal")] == [
        True,
        False,
        False,
    ]
    assert not applies(config(tolerance=0.0))
    assert not applies(config("residual")) and foreign_codec(config("residual")) is None
