"""Masked reports in simulated time: equal decisions as without masks, and what a crash or a lie costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator_free.correction.network_mean import Report
from coordinator_free.correction.policy_interface import STAY
from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Status
from coordinator_free.ranges import LOW_ORDER
from peers.protocol import actions as do
from tests.support.corrections import SKETCH, corrected, observed
from tests.support.signatures import sign_as
from tests.support.simulated import Network, SimDevice, small_config
from transport.security.mask_keys import MaskKey
from transport.wire.messages import Gossip, Hello, Observed, Refuse

PERIODIC = {"policy": "dominant", "rounds": 60, "period": 4, "delay": 3, "sketch": SKETCH}
PERIODIC |= {"masked": True, "offset_overhead": False}
POLICIES = {"dominant": None, "lookahead": {STAY: 0.1, ("late", "more-steps"): 0.9}}


def decided(net: Network) -> list[dict[str, Any]]:
    """The decisions of the devices, which must be equal."""
    made = [device.logged("decision") for device in net]
    assert len(made[0]) >= 2 and all(others == made[0] for others in made)
    return made[0]


def reports(device: SimDevice) -> list[Observed]:
    """The reports of its own that a device sent."""
    sent = [tell.message for tell in device.done(do.Tell) if isinstance(tell.message, Observed)]
    return [message for message in sent if message.device == device.name]


def own_report(device: SimDevice) -> Report:
    """The newest report of its own that a device holds."""
    assert device.protocol.own is not None
    return device.protocol._correction._network_mean._newest[device.protocol.own.key]


def settings_around(device: SimDevice, decided: int) -> tuple[Any, Any]:
    """The settings of the round at whose end the device decides, and of the next one."""
    by_round = {train.round: train.settings for train in device.done(do.Train)}
    return by_round[decided], by_round[decided + 1]


def crash_soon_after_a_diagnosis(masked: bool) -> tuple[Network, int]:
    """Six devices, one of which crashes in a diagnosis, before it reports. Returns the round of it too.

    The verdict comes after the decision of that diagnosis, and before the next diagnosis.
    """
    net = Network(
        small_config(
            topology={"kind": "full"},
            correction={"policy": "dominant", "rounds": 60, "period": 12, "delay": 3, "sketch": SKETCH}
            | {"masked": masked, "offset_overhead": False},
            round={"deadline_s": 0.5},
        )
    )
    for device in net.cohort(6):
        device.measure = observed
    net.rounds(3)
    net.signal("d5", "leave")
    net.until(lambda: all(len(device.done(do.Diagnose)) == 2 for device in net))
    epoch = int(net["d0"].done(do.Diagnose)[-1].round)
    net.crash("d4")
    net.rounds(40)
    return net, epoch


@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_are_those_without_masks_up_to_the_rounding(policy: str) -> None:
    plain = decided(corrected(policy, drops=POLICIES[policy], offset_overhead=False))
    masked = decided(corrected(policy, drops=POLICIES[policy], offset_overhead=False, masked=True))
    for one, other in zip(plain, masked, strict=True):
        for group, residuals in one["residuals"].items():
            assert other["residuals"][group] == pytest.approx(residuals, rel=1e-6)
        rest = one.keys() - {"residuals", "digest"}  # digests of different sums
        assert {name: other[name] for name in rest} == {name: one[name] for name in rest}


def test_two_runs_with_other_keys_decide_from_the_same_sums() -> None:
    first, second = corrected("dominant", masked=True), corrected("dominant", masked=True)
    assert decided(first) == decided(second)  # with the digests of the sums
    assert reports(first["d0"])[0].values != reports(second["d0"])[0].values


def test_a_device_never_sends_two_reports_under_one_mask() -> None:
    """Their difference would be the difference of the values."""
    net = corrected("dominant", masked=True)
    device, count = net["d0"], len(reports(net["d0"]))
    net.until(lambda: len(reports(device)) > count)
    epoch = reports(device)[-1].epoch
    held = own_report(device)
    again = device.protocol.diagnosed(net.now, epoch, observed("d3", epoch))
    assert not [tell for tell in again if isinstance(tell, do.Tell) and isinstance(tell.message, Observed)]
    assert len({message.values for message in reports(device) if message.epoch == epoch}) == 1
    assert own_report(device) is held  # a second one might replace it, if its hash is greater


def between_a_diagnosis_and_its_report(net: Network) -> tuple[SimDevice, int]:
    """Run until d0 measures, and return d0 and the round of its diagnosis."""
    device, count = net["d0"], len(net["d0"].done(do.Diagnose))
    net.until(lambda: len(device.done(do.Diagnose)) > count)
    return device, device.done(do.Diagnose)[-1].round


def test_a_device_that_claims_anew_makes_no_report_for_a_cohort_with_its_earlier_key() -> None:
    net = corrected("dominant", masked=True)
    device, epoch = between_a_diagnosis_and_its_report(net)
    own = device.protocol.own
    assert own is not None
    verdict = Gossip([replace(own, status=Status.CRASHED).to_dict()], False, device.round)
    net._handle(device, lambda now: device.protocol.on_message(now, "d1", verdict))
    assert device.protocol.own != own and device.protocol.own is not None
    assert epoch in device.protocol._correction._masks._cohorts  # type: ignore[union-attr]
    device.protocol.diagnosed(net.now, epoch, observed("d0", epoch))
    assert device.protocol.own.key not in device.protocol._correction._network_mean._newest


def test_after_an_event_a_device_makes_no_report_of_an_earlier_diagnosis() -> None:
    net = corrected("dominant", masked=True)
    device, epoch = between_a_diagnosis_and_its_report(net)
    before = own_report(device)
    device.protocol._state.start_correction(device.round)
    device.protocol._correction.takes_anchor()  # notices the event, as the next round does
    device.protocol.diagnosed(net.now, epoch, observed("d0", epoch))
    assert own_report(device) is before


def test_a_report_on_the_wire_says_nothing_of_its_values() -> None:
    net = corrected("dominant", masked=True)
    for device in net:
        sent = {message.epoch: message.values for message in reports(device)}
        assert len(sent) >= 2  # one report an epoch: its copies to all peers are equal
        assert {m.values for m in reports(device)} == {*sent.values()}
        for packed in sent.values():
            numbers = np.frombuffer(packed, dtype="<i8", offset=16)
            assert (np.abs(numbers.astype(float)) > 2.0**52).mean() > 0.9  # uniform in +-2^63


def test_after_a_crash_in_the_middle_one_diagnosis_is_lost_and_nothing_else() -> None:
    net, epoch = crash_soon_after_a_diagnosis(masked=True)
    plain, same_epoch = crash_soon_after_a_diagnosis(masked=False)
    assert epoch == same_epoch
    for device in net:
        undecided = device.logged("undecided")
        assert undecided == [{"epoch": epoch, "missing": ["d4@0"]}]
        made = device.logged("decision")
        assert epoch not in [record["epoch"] for record in made]
        lost = [record["epoch"] for record in plain[device.name].logged("decision")]
        assert lost == sorted([*(record["epoch"] for record in made), epoch])
        assert made[-1]["epoch"] > epoch and made[-1]["missing"] == []
        assert device.table() == plain[device.name].table()
        assert not plain[device.name].logged("undecided")
        before, after = settings_around(device, epoch + 3)
        assert before and after == before  # the last decision holds
        before, after = settings_around(plain[device.name], epoch + 3)
        assert before and after != before


def in_a_diagnosis(size: int = 6) -> tuple[Network, int]:
    """A ring in which all devices have begun a diagnosis and no report has arrived. Returns its round too."""
    net = Network(small_config(topology={"kind": "ring"}, correction=PERIODIC, round={"deadline_s": 0.5}))
    for device in net.cohort(size):
        device.measure = observed
    net.rounds(3)
    net.signal(f"d{size - 1}", "leave")
    net.until(lambda: all(len(device.done(do.Diagnose)) == 2 for device in net))
    return net, int(net["d0"].done(do.Diagnose)[-1].round)


def test_a_join_in_the_middle_of_a_diagnosis_ends_it_and_the_next_one_has_the_newcomer() -> None:
    net, epoch = in_a_diagnosis()
    joined = net.add("d6", "d0", "d1", measure=observed)
    net.rounds(20)
    old = [device for device in net if device is not joined]
    made = old[0].logged("decision")
    assert len(old) == 5 and all(device.logged("decision") == made for device in old)
    assert epoch not in [record["epoch"] for record in made]  # the join begins another correction
    assert not any(device.logged("undecided") for device in net)
    later = [record for record in made if record["epoch"] > epoch]
    assert later and joined.logged("decision") == later
    assert all("d6@0" not in record["missing"] for record in later)


def test_a_partition_that_heals_in_the_middle_of_a_diagnosis_costs_this_diagnosis() -> None:
    net, epoch = in_a_diagnosis()
    net.loses = lambda source, target, _: (source in ("d0", "d1")) != (target in ("d0", "d1"))
    net.run(0.2)  # shorter than a suspicion
    net.loses = lambda source, target, _: False
    net.rounds(20)
    made = net["d0"].logged("decision")
    assert made[-1]["epoch"] > epoch and made[-1]["missing"] == []
    for device in net:
        assert device.logged("decision") == made and device.table() == net["d0"].table()
        assert [record["epoch"] for record in device.logged("undecided")] == [epoch]


def test_a_slow_device_and_faster_ones_decide_from_the_same_reports() -> None:
    """The next reports of the others reach the neighbours of d0 before they decide from the last ones."""
    net = Network(small_config(topology={"kind": "ring"}, correction=PERIODIC, round={"deadline_s": 0.5}))
    for device in net.cohort(7):
        device.measure = observed
    net.rounds(3)
    net.signal("d6", "leave")
    net.until(
        lambda: bool(diagnoses := net["d0"].done(do.Diagnose)) and net["d0"].round == diagnoses[0].round + 3
    )
    net.stall("d0", 0.3)
    net.rounds(3)
    for device in net:
        assert [record["epoch"] for record in device.logged("decision")] == [4]
        assert not device.logged("undecided")


@pytest.mark.parametrize("size", [3, 4])
def test_a_cohort_below_three_sends_no_reports(size: int) -> None:
    net = corrected("dominant", size=size, masked=True)  # one of them has left
    for device in net:
        assert bool(device.done(do.Diagnose)) == bool(reports(device)) == (size == 4)
        lost = device.logged("undecided")
        assert bool(lost) == (size == 3)
        assert all(line["error"] == "a cohort of 2 sends no masked reports" for line in lost)


def test_a_device_that_lies_costs_the_diagnosis_and_is_not_believed() -> None:
    """A masked number can be anything, so only the sum shows that one of them is wrong."""
    net = corrected("dominant", masked=True)
    correction = net["d1"].protocol._correction
    honest = correction._network_mean.add_own_masked

    def lie(origin: Any, cohort: Any, values: Any, sign: Any) -> None:
        honest(origin, cohort, values + np.uint64(1 << 61), sign)

    correction._network_mean.add_own_masked = lie  # type: ignore[method-assign]
    made = len(net["d0"].logged("decision"))
    net.rounds(8)
    for device in net:
        assert len(device.logged("decision")) == made
        assert {line["error"] for line in device.logged("undecided")} == {
            "the sum of 4 masked reports is out of range"
        }


def test_a_value_beyond_the_range_is_clipped_and_logged() -> None:
    net = corrected("dominant", masked=True)
    net["d1"].measure = lambda name, epoch: observed(name, epoch, early={"gap": 1e6})
    net.rounds(8)
    assert net["d1"].logged("clipped")[0]["values"] == 1
    assert not net["d0"].logged("clipped")
    assert net["d0"].logged("decision")[-1]["residuals"]["early"]["gap"] == pytest.approx((30 + 4096) / 4)


def test_reports_without_masks_and_forged_ones_are_refused() -> None:
    net = corrected("dominant", masked=True)
    count = net["d0"].protocol._correction._network_mean.length
    masked = Observed("d1", 0, net["d0"].round, bytes(16 + 8 * count), b"x" * 64)
    for message, reason in (
        (masked, "forged"),
        (replace(masked, values=bytes(4 * count)), "malformed"),
        (replace(masked, values=bytes(8 * count)), "malformed"),
    ):
        assert net["d0"].protocol.on_message(net.now, "d1", message) == [do.Drop(reason)]


def test_a_living_member_whose_block_was_away_may_report_again() -> None:
    net = corrected("dominant", masked=True)
    state, correction = net["d0"].protocol._state, net["d0"].protocol._correction
    key = BlockKey("d1", 0)
    record = state.blocks.pop(key)
    correction.round_closed(net.now)
    state.blocks[key] = record
    assert key not in correction._network_mean._newest
    decided = len(net["d2"].logged("decision"))
    net.rounds(12)
    assert net["d0"].logged("decision")[-1] == net["d2"].logged("decision")[-1]
    assert len(net["d2"].logged("decision")) > decided


def invented(net: Network, epoch: int) -> Observed:
    """A report that d1 signs for a round of its choice."""
    count = net["d1"].protocol._correction._network_mean.length
    report = Report(BlockKey("d1", 0), epoch, np.zeros(count, np.uint64), cohort=b"x" * 16)
    return Observed("d1", 0, epoch, report.packed(), sign_as("d1", report.signed_data()))


def test_a_report_of_a_far_round_is_refused() -> None:
    """It would replace all later reports of its origin, and only the origin could read the sums."""
    net = corrected("dominant", masked=True)
    device = net["d0"].protocol
    latest = device._state.network_round + 4  # a period
    for epoch in (latest + 1, net.config.round.count - 1):
        assert device.on_message(net.now, "d1", invented(net, epoch)) == [do.Drop("malformed")]
    assert do.Drop("malformed") not in device.on_message(net.now, "d1", invented(net, latest))
    decided = len(net["d0"].logged("decision"))
    net.rounds(12)
    assert len(net["d0"].logged("decision")) > decided  # it costs the diagnoses of one period


def test_a_report_of_a_round_after_the_last_one_is_refused_without_masks_too() -> None:
    net = corrected("dominant")
    count = net["d0"].protocol._correction._network_mean.length
    for epoch, reason in ((net.config.round.count, "malformed"), (net.config.round.count - 1, "forged")):
        message = Observed("d1", 0, epoch, bytes(4 * count), b"x" * 64)
        assert net["d0"].protocol.on_message(net.now, "d1", message) == [do.Drop(reason)]


# -- keys ----------------------------------------------------------------------------------------------------
def test_each_incarnation_has_a_key_of_its_own_and_no_key_without_masks() -> None:
    net = corrected("dominant", masked=True)
    net.signal("d0", "leave")
    net.rounds(2)
    net.run(2.0)
    again = net.add("d0", "d1")
    net.rounds(3)
    keys = [record.mask_key for record in again.protocol.members if record.device == "d0"]
    assert len(set(keys)) == len(keys) >= 2 and all(len(key) == 32 for key in keys)
    assert not any(record.mask_key for record in corrected("dominant")["d0"].protocol.members)


def gossip(net: Network, mask_key: bytes, status: Status = Status.ALIVE) -> list[do.Action]:
    """The answer of d0 to a newer record of d1 with this key, which d1 has signed."""
    own = net["d1"].protocol.own
    assert own is not None
    newer = replace(own, lamport=own.lamport + 1, mask_key=mask_key, status=status)
    signed = replace(newer, signature=sign_as("d1", newer.signed_data()))
    fields = {**signed.to_dict(), "mask_key": mask_key} if mask_key else signed.to_dict()
    return net["d0"].protocol.on_message(net.now, "d1", Gossip([fields], False, 0))


@pytest.mark.parametrize("wrong", [b"", bytes(31), *(n.to_bytes(32, "little") for n in sorted(LOW_ORDER))])
def test_a_record_with_a_bad_mask_key_is_refused(wrong: bytes) -> None:
    net = corrected("dominant", masked=True)
    before = list(net["d0"].protocol.members)
    assert gossip(net, wrong) == [do.Drop("malformed")]
    assert list(net["d0"].protocol.members) == before
    assert gossip(net, MaskKey().public) != [do.Drop("malformed")]


def test_a_network_without_masks_takes_no_record_with_a_key() -> None:
    net = corrected("dominant")
    assert gossip(net, MaskKey().public) == [do.Drop("malformed")]


@pytest.mark.parametrize("masked", [True, False])
def test_the_record_of_an_incarnation_that_ended_may_have_a_key_or_not(masked: bool) -> None:
    """It may have ended before the run had masks. A leave must never be lost."""
    net = corrected("dominant", masked=masked)
    assert do.Drop("malformed") not in gossip(net, b"" if masked else MaskKey().public, Status.LEFT)
    assert net["d0"].protocol.members.tombstoned(BlockKey("d1", 0))


def test_devices_with_and_without_masks_refuse_each_other() -> None:
    net = corrected("dominant", masked=True)
    other = net.add("d9", "d0", config=small_config(topology={"kind": "ring"}))
    net.run(2.0)
    refusals = [t.message for t in net["d0"].done(do.Tell) if isinstance(t.message, Refuse)]
    assert {refusal.reason for refusal in refusals} == {"it lacks reports:masked"}
    hellos = [t.message for t in other.done(do.Tell) if isinstance(t.message, Hello)]
    assert not any("reports:masked" in hello.capabilities for hello in hellos)
    assert "d9" not in net["d0"].protocol.members.alive()
