"""A leave reaches all devices in the end, and no saved adapter keeps a block that is forgotten."""

from __future__ import annotations

import pytest

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from peers.errors import LEAVE_UNCONFIRMED
from peers.protocol import actions as do
from peers.protocol.state_machine import Phase
from tests.support.membership_records import make
from tests.support.simulated import Network, SimDevice, small_config
from tests.support.simulated_checks import agreed, has_gone, started

D1, D2 = BlockKey("d1", 0), BlockKey("d2", 0)


def apart(net: Network, *alone: str) -> None:
    net.loses = lambda source, target, message: (source in alone) != (target in alone)


def heal(net: Network) -> None:
    net.loses = lambda source, target, message: False


def saved(device: SimDevice) -> tuple[list[Record], bool]:
    """The wish of a device as it is on its disk."""
    last: do.SaveLeave = device.done(do.SaveLeave)[-1]
    return list(last.records), last.confirmed


# -- the wish outlives the process -------------------------------------------------------------------------


def test_a_leave_is_saved_before_anyone_is_told_and_marked_once_it_is_confirmed() -> None:
    net = started(3)
    net.signal("d1", "leave")
    said = [isinstance(action, do.SaveLeave) for action in net["d1"].told]
    assert True in said and not any(
        isinstance(action, do.Tell) and "LEFT" in repr(action)
        for action in net["d1"].told[: said.index(True)]
    )
    assert net["d1"].done(do.SaveLeave)[0].confirmed is False
    net.run(1.0)
    records, confirmed = saved(net["d1"])
    assert confirmed and [(r.key, r.status) for r in records] == [(D1, Status.LEFT)]
    assert net["d1"].exit == do.Exit(0, "leave")


@pytest.mark.parametrize("on_crash", ["forget", "keep"])
def test_a_leave_alone_in_a_partition_has_its_own_exit_status_and_is_delivered_later(on_crash: str) -> None:
    net = started(4, on_crash=on_crash)
    apart(net, "d1")
    net.signal("d1", "leave")
    net.run(3.0)
    exit = net["d1"].exit
    assert exit is not None and exit.code == LEAVE_UNCONFIRMED and "d1@0" in exit.reason
    records, confirmed = saved(net["d1"])
    assert not confirmed
    net.run(20.0)
    assert has_gone(net, D1) == (on_crash == "forget")
    net._handle(net["d0"], lambda now: net["d0"].protocol.leaves(now, records))
    net.run(2.0)
    assert has_gone(net, D1) and agreed(net)
    assert all(device.protocol.members.tombstoned(D1) for device in net)
    assert [log["peer"] for log in net["d3"].logged("tombstone")] == ["d1"]


def test_a_device_that_returns_says_the_leave_of_its_earlier_life_first() -> None:
    net = started(3, on_crash="keep")
    apart(net, "d1")
    net.signal("d1", "leave")
    net.run(20.0)
    records, _ = saved(net["d1"])
    heal(net)
    back = net.add("d1", "d0", wishes=tuple(records))
    net.until(lambda: back.round >= 0)
    net.run(2.0)
    assert back.protocol.own is not None and back.protocol.own.incarnation == 1
    assert all(device.protocol.members.tombstoned(D1) for device in net) and has_gone(net, D1)
    assert saved(back) == (records, True)


def test_a_leave_is_repeated_with_the_leaves_of_earlier_incarnations() -> None:
    net = started(3)
    net.signal("d1", "retire")
    net.run(1.0)
    net.add("d1", "d0")
    net.until(lambda: net["d1"].round >= 0)
    net.loses = lambda source, target, message: source == "d1"
    net.signal("d1", "leave")
    net.run(0.6)
    heal(net)
    net.run(1.0)
    assert net["d1"].exit == do.Exit(0, "leave")
    assert all(device.protocol.members.tombstoned(BlockKey("d1", n)) for device in net for n in (0, 1))


def test_two_devices_that_leave_together_do_not_confirm_each_other() -> None:
    net = started(4)
    apart(net, "d1", "d2")
    net.signal("d1", "leave")
    net.signal("d2", "leave")
    net.run(3.0)
    assert {net[d].exit.code for d in ("d1", "d2")} == {LEAVE_UNCONFIRMED}  # type: ignore[union-attr]


def test_the_last_devices_that_leave_need_no_confirmation() -> None:
    net = started(2)
    net.signal("d0", "leave")
    net.signal("d1", "leave")
    net.run(3.0)
    assert [net[d].exit for d in ("d0", "d1")] == [do.Exit(0, "leave")] * 2


def test_a_forged_wish_is_refused() -> None:
    net = started(3)
    (own,) = [r for r in net["d0"].protocol.members if r.device == "d1"]
    forged = Record(**{**own.to_dict(), "status": Status.LEFT, "lamport": own.lamport + 1})
    net._handle(net["d0"], lambda now: net["d0"].protocol.leaves(now, [forged]))
    net.run(1.0)
    assert not net["d0"].protocol.members.tombstoned(D1) and agreed(net)


def test_a_record_that_is_refused_is_not_confirmed() -> None:
    """Otherwise the leaver would go and nobody would know of its leave."""
    net = started(2)
    told = len(net["d0"].done(do.Tell))
    forged = net["d1"].protocol.own
    assert forged is not None
    state = net["d0"].protocol._state
    gossip = state.gossip([Record(**{**forged.to_dict(), "status": Status.LEFT})])
    net["d0"].protocol.on_message(net.now, "d1", gossip)
    echoed = [tell for tell in net["d0"].done(do.Tell)[told:] if "'status': 5" in repr(tell.message)]
    assert echoed == []


def test_a_forged_confirmation_confirms_nothing() -> None:
    net = started(3)
    apart(net, "d1")
    net.signal("d1", "leave")
    left = net["d1"].protocol._state.members.get(D1)
    assert left is not None and left.status is Status.LEFT
    forged = Record(**{**left.to_dict(), "status": Status.LEFT, "signature": bytes(64)})
    net["d1"].protocol.on_message(net.now, "d0", net["d0"].protocol._state.gossip([forged]))
    state = net["d1"].protocol._state
    assert D1 in state.unconfirmed and not state.confirmed_by
    net["d1"].protocol.on_message(net.now, "d0", net["d0"].protocol._state.gossip([left]))
    assert state.confirmed_by == {D1: {"d0"}}


# -- exports after a leave ---------------------------------------------------------------------------------


def ending(net: Network) -> SimDevice:
    """A device that has exported and waits for the last messages of the others."""
    net.until(lambda: any(d.protocol.phase is Phase.FINISH for d in net))
    return next(d for d in net if d.protocol.phase is Phase.FINISH)


def test_a_leave_after_the_export_exports_again() -> None:
    net = Network(small_config(round={"count": 6}))
    net.cohort(3, snapshot_every=1)
    net.until(lambda: all(d.round == 5 for d in net))
    net.loses = lambda source, target, message: target == "d2"  # it still waits when the others have exported
    device = ending(net)
    heal(net)
    assert len(device.done(do.Export)) == 1 and D2 in device.slots
    net.signal("d2", "leave")
    net.run(1.0)
    kinds = [type(action) for action in device.told if isinstance(action, do.Export | do.DropBlock)]
    assert kinds == [do.Export, do.DropBlock, do.Export]
    ends = [snapshot for snapshot in device.done(do.Snapshot) if snapshot.tag == "end"]
    assert len(ends) == 2


def test_a_device_that_retires_exports_again_if_it_hears_a_leave_before_it_has_gone() -> None:
    net = started(3)
    net.loses = lambda source, target, message: source == "d0"  # nobody hears or confirms its retirement
    net.signal("d0", "retire")
    net.signal("d1", "leave")
    net.run(1.0)
    kinds = [type(action) for action in net["d0"].told if isinstance(action, do.Export | do.DropBlock)]
    assert kinds == [do.Export, do.DropBlock, do.Export]


def test_a_deletion_before_the_export_leads_to_one_export() -> None:
    net = Network(small_config(round={"count": 12}))
    net.cohort(3)
    net.rounds(3)
    net.signal("d2", "leave")
    net.run(5.0)
    assert [len(net[d].done(do.Export)) for d in ("d0", "d1")] == [1, 1]


# -- who has to confirm ------------------------------------------------------------------------------------


def test_one_member_that_confirms_and_relays_nothing_is_not_enough() -> None:
    net = started(4, topology={"kind": "full"})
    net.loses = lambda source, target, message: "d1" in (source, target) and "d3" not in (source, target)
    net["d3"].protocol._state.tell_all = lambda message, but=None: None  # type: ignore[method-assign]
    net.signal("d1", "leave")
    net.run(2.5)
    exit = net["d1"].exit
    assert exit is not None and exit.code == LEAVE_UNCONFIRMED
    assert [saved.confirmed for saved in net["d1"].done(do.SaveLeave)] == [False]


def test_most_live_neighbours_are_enough_and_all_are_waited_for() -> None:
    net = started(4, topology={"kind": "full"})
    net.loses = lambda source, target, message: {"d1", "d3"} == {source, target}
    net.signal("d1", "leave")
    net.run(1.0)
    assert net["d1"].live
    net.run(1.5)
    assert net["d1"].exit == do.Exit(0, "leave")
    assert [saved.confirmed for saved in net["d1"].done(do.SaveLeave)] == [False, True]


def test_a_leave_under_an_earlier_key_is_told_and_kept() -> None:
    """The device has lost its key. Those that know the earlier one take in the leave that it signed."""
    net = started(3)
    net.crash("d1")
    left = make("d1", status=Status.LEFT, slot=1, lamport=90)
    fresh = net.add("d1", "d0", "d2", wishes=(left,), public=b"public:other")
    net.run(2.0)
    assert all(net[name].protocol.members.tombstoned(D1) for name in ("d0", "d2"))
    assert fresh.protocol._state.unconfirmed == {}
    assert fresh.done(do.SaveLeave) == [do.SaveLeave((left,), True)]


def test_an_adapter_that_was_saved_before_a_verdict_follows_a_later_leave() -> None:
    net = started(4)
    state = net["d0"].protocol._state
    state.export()
    state.flush()
    owner = state.members.get(D1)
    assert owner is not None
    net.crash("d1")
    net.until(lambda: D1 not in net["d0"].slots)
    assert not net["d0"].done(do.Export)
    left = make("d1", status=Status.LEFT, slot=owner.slot, lamport=99, address=owner.address)
    net._handle(net["d0"], lambda now: net["d0"].protocol.leaves(now, [left]))
    assert len(net["d0"].done(do.Export)) == 1


# -- receipts of confirmations -----------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_with_receipts_each_survivor_notes_its_own_confirmation_and_those_that_it_hears(on: bool) -> None:
    net = started(3, membership={"receipts": on})
    net.signal("d1", "leave")
    net.run(3.0)
    for device in ("d0", "d2"):
        noted = {(action.key, action.who) for action in net[device].done(do.Confirmed)}
        assert noted == ({(D1, "d0"), (D1, "d2")} if on else set())
