"""The allocator `priced` in simulated rounds: the price, and blocks whose owners have crashed."""

from __future__ import annotations

import pytest

from coordinator_free.averaging.pricing import next_price
from coordinator_free.identifiers import BlockKey
from peers.protocol import actions as do
from peers.protocol.block_survival import BlockSurvival
from peers.radio_config import PricingConfig
from tests.support.simulated import SimDevice
from tests.support.simulated_allocation import AllocatingNetwork

TIGHT = 300  # bytes: three parts in fp16, where a round of three devices asks for 12
CRASHED = BlockKey("d2", 0)


def network(allocator: str) -> AllocatingNetwork:
    """Three devices. Their rounds go on while a crash is not confirmed, and in the grace after it."""
    rounds = {"count": 100_000, "deadline_s": 0.2}
    soon = {"settle_s": 20.0, "probe_s": 0.2, "crash_after_s": 0.2, "grace_s": 0.5}
    net = AllocatingNetwork(allocator, radio={"budget_bytes": TIGHT}, round=rounds, membership=soon)
    net.cohort(3, budget_bytes=TIGHT)
    net.rounds(4)
    return net


def sent_in_grace(device: SimDevice) -> int:
    """How often a device sent a part of the crashed block after the verdict."""
    told = device.told
    verdict = next(n for n, a in enumerate(told) if isinstance(a, do.Log) and a.event == "confirmed")
    later = [action for action in told[verdict:] if isinstance(action, do.Publish)]
    return sum(part.block == CRASHED for publish in later for part, _, _ in publish.parts)


def crash(net: AllocatingNetwork) -> int:
    """Crash d2 and wait until all have dropped its block; returns how often it was sent in the grace."""
    net.crash("d2")
    net.until(lambda: all(CRASHED not in device.protocol.blocks for device in net))
    return sum(sent_in_grace(device) for device in net if device.logged("confirmed"))


def test_no_copy_of_a_block_is_sent_once_the_crash_of_its_owner_is_confirmed() -> None:
    assert crash(network("priced")) == 0
    assert crash(network("residual")) > 0


def test_a_round_records_the_price_and_the_bytes_of_each_block() -> None:
    net = network("priced")
    device, target = net["d0"], PricingConfig().target * TIGHT
    rounds = device.done(do.RoundDone)
    first = next_price(0.0, net.spent["d0", 0], target, PricingConfig().step)
    assert rounds[0].price == pytest.approx(first) and first > 0
    for done in rounds:
        sent = [part for p in device.done(do.Publish) if p.round == done.round for part, _, _ in p.parts]
        assert done.block_bytes.keys() == {str(part.block) for part in sent}


def test_other_allocators_have_no_price_and_observe_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(self: BlockSurvival) -> dict[BlockKey, float]:
        raise AssertionError

    monkeypatch.setattr(BlockSurvival, "observe", observe)
    net = network("residual")
    assert {done.price for device in net for done in device.done(do.RoundDone)} == {None}
