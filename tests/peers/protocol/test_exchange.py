"""Versions and copies: the data that a plan sends and withholds, and the copies that a round consumes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.averaging.mixing import MODES, Mix
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.exchange import ZERO, Exchange, Plan
from tests.support.contents import everything
from transport.wire.messages import Manifest

OWN, THEIRS, GONE = BlockKey("d0", 0), BlockKey("d1", 0), BlockKey("d2", 0)
SIZES = {"early": 100, "late": 60}
PLENTY = 1_000_000
PART = Part(THEIRS, "early")


def part_bytes(group: str, codec: str | None = None) -> int:
    return SIZES[group]


def exchange(mode: str = "average", *keys: BlockKey) -> Exchange:
    """The exchange of d0, with these blocks (none: its own and d1's) at version 0."""
    made = Exchange(MODES[mode](), SIZES, part_bytes)
    for key in keys or (OWN, THEIRS):
        made.add_block(key, 0)
    return made


def plan(of: Exchange, *receivers: str, budget: int = PLENTY) -> dict[str, Plan]:
    return of.plan(OWN, receivers or ("d9",), budget, "train")


def statuses(of: Plan) -> dict[Part, str]:
    return {Part(BlockKey(device, inc), group): status for device, inc, group, _, status in of.items}


def sent(plans: dict[str, Plan]) -> list[tuple[str, Part]]:
    return [(peer, part) for peer, p in plans.items() for part, _, _ in p.parts]


def newer(of: Exchange, version: int) -> None:
    """Set all held copies to a version."""
    of.held = dict.fromkeys(of.held, version)


def manifest(version: int, status: str, part: Part = PART, round_: int = 5) -> Manifest:
    item = (part.block.device, part.block.incarnation, part.group, version, status)
    return Manifest(round_, "train", b"viewview", [item])


def close(of: Exchange, round_: int, said: Manifest | None = None) -> tuple[Mix, ...]:
    manifests = {} if said is None else {"d9": said}
    weights = dict.fromkeys(of.groups, dict.fromkeys(manifests, 0.5))
    return of.close_round(OWN, round_, weights, manifests)


# -- a refit replaces ---


def refitted() -> Exchange:
    of = exchange()
    plan(of, "d8", "d9")
    newer(of, 5)
    of.start_refit(OWN)
    return of


def test_a_refitted_block_is_sent_as_a_replacement_once_to_each_neighbour() -> None:
    of = refitted()
    first = plan(of, "d9")["d9"]
    assert {s for p, s in statuses(first).items() if p.block == OWN} == {"replaces"}
    assert {s for p, s in statuses(first).items() if p.block == THEIRS} == {"sent"}
    newer(of, 6)
    assert "replaces" not in statuses(plan(of, "d9")["d9"]).values()
    assert {s for p, s in statuses(plan(of, "d8")["d8"]).items() if p.block == OWN} == {"replaces"}


def test_a_refit_is_sent_again_to_a_neighbour_that_may_not_have_it() -> None:
    of = refitted()
    plan(of, "d8", "d9")
    close(of, 5, manifest(5, "sent", Part(OWN, "early")))  # d9 takes part in the round, d8 does not
    of.forget_sent("d9")
    newer(of, 6)
    told = plan(of, "d8", "d9")
    assert "replaces" in statuses(told["d8"]).values() and "replaces" in statuses(told["d9"]).values()


def test_a_refit_that_exceeds_the_budget_is_sent_later() -> None:
    of = refitted()
    assert "replaces" not in statuses(plan(of, "d9", budget=10)["d9"]).values()
    assert "replaces" in statuses(plan(of, "d9")["d9"]).values()


def test_copies_from_before_a_refit_are_not_mixed_with() -> None:
    of, own = refitted(), Part(OWN, "early")
    plan(of, "d9")  # in round 5: the copy that d9 sent is older
    of.on_copy("d9", own, 4, 5, "old")
    assert close(of, 5, manifest(4, "sent", own)) == ()
    of.on_copy("d9", own, 6, 6, "new")
    assert close(of, 6, manifest(6, "sent", own, 6)) == (Mix(own, ((0.5, "new"),)),)


def test_only_the_refit_of_the_owner_replaces_the_copy() -> None:
    for sender, weight in (("d1", 1.0), ("d9", 0.5)):
        of = exchange()
        of.on_copy(sender, PART, 5, 5, "refitted")
        weights = {group: {sender: 0.5} for group in of.groups}
        mixes = of.close_round(OWN, 5, weights, {sender: manifest(5, "replaces")})
        assert mixes == (Mix(PART, ((weight, "refitted"),)),)
        again = of.close_round(OWN, 6, weights, {sender: manifest(5, "unchanged", round_=6)})
        assert again == (Mix(PART, ((0.5, "refitted"),)),)  # it replaces once


# -- what is sent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["average", "newest"])
def test_an_unchanged_version_is_not_sent_again(mode: str) -> None:
    of = exchange(mode)
    assert len(sent(plan(of))) == 4
    again = plan(of)["d9"]
    assert again.parts == () and set(statuses(again).values()) == {"unchanged"}


def test_a_new_version_is_sent() -> None:
    of = exchange()
    plan(of)
    of.held[PART] = 1
    assert plan(of)["d9"].parts == ((PART, 1, "train"),)


def test_a_version_sent_to_one_neighbour_is_still_sent_to_another() -> None:
    of = exchange()
    plan(of, "d8")
    assert len(sent(plan(of, "d9"))) == 4


def test_a_block_that_nobody_has_trained_is_not_sent() -> None:
    of = Exchange(MODES["average"](), SIZES, part_bytes)
    of.add_block(THEIRS)
    assert statuses(plan(of)["d9"]) == dict.fromkeys(of.parts(THEIRS), "unchanged")
    assert of.held[PART] == ZERO


def test_a_manifest_distinguishes_sent_unchanged_and_withheld() -> None:
    of = exchange()
    plan(of)
    for group in SIZES:
        of.held[Part(OWN, group)] = 1
    said = statuses(plan(of, budget=100)["d9"])
    assert said[Part(OWN, "early")] == "sent"
    assert said[Part(OWN, "late")] == "withheld"
    assert said[PART] == said[Part(THEIRS, "late")] == "unchanged"


def test_a_plan_counts_its_withheld_parts() -> None:
    assert [plan(exchange(), budget=b)["d9"].withheld for b in (0, 100, PLENTY)] == [4, 3, 0]


def test_the_own_block_goes_before_others() -> None:
    of = exchange()
    assert sent(plan(of, "d8", "d9", budget=320)) == [
        (peer, Part(OWN, group)) for peer in ("d8", "d9") for group in SIZES
    ]


def test_the_part_that_waited_longest_is_sent_first() -> None:
    of = exchange()
    plan(of, budget=160)  # the own block; the block of d1 waits
    newer(of, 1)
    assert {part.block for _, part in sent(plan(of, budget=160))} == {THEIRS}


@given(st.integers(100, 1000), st.integers(1, 3), st.integers(1, 4))
def test_no_part_waits_forever_while_all_parts_keep_changing(
    budget: int, receivers: int, blocks: int
) -> None:
    of = exchange("average", *(BlockKey(f"d{i}", 0) for i in range(blocks)))
    peers = [f"p{i}" for i in range(receivers)]
    times: Counter[tuple[str, Part]] = Counter()
    for round_ in range(2 * receivers * len(of.held)):
        newer(of, round_)
        times.update(sent(plan(of, *peers, budget=budget)))
    assert set(times) == {(peer, part) for peer in peers for part in of.held}


@given(
    st.integers(0, 600),
    st.lists(st.dictionaries(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6),
    st.sampled_from(sorted(MODES)),
)
def test_no_plan_exceeds_its_budget(budget: int, changes: list[dict[int, int]], mode: str) -> None:
    of = exchange(mode, OWN, THEIRS, GONE)
    parts = sorted(of.held)
    for changed in changes:
        for index, steps in changed.items():
            of.held[parts[index]] += steps
        plans = plan(of, "d7", "d8", "d9", budget=budget)
        assert sum(SIZES[part.group] for _, part in sent(plans)) <= budget
        for p in plans.values():
            assert {part for part, _, _ in p.parts} == {x for x, s in statuses(p).items() if s == "sent"}


@given(st.integers(0, 600))
def test_sent_and_withheld_parts_are_those_that_the_neighbour_lacks(budget: int) -> None:
    of = exchange()
    lacking = dict.fromkeys(of.held, 0)
    for round_ in range(1, 5):
        newer(of, round_)
        p = plan(of, budget=budget)["d9"]
        lacking.update({part: version for part, version, _ in p.parts})
        assert {x for x, s in statuses(p).items() if s == "withheld"} == {
            part for part, version in lacking.items() if version < round_
        }


def test_a_requested_block_is_sent_once_as_a_transfer() -> None:
    of = exchange("average")
    of.on_request("d9", of.parts(THEIRS))
    assert {part.block: cause for part, _, cause in plan(of)["d9"].parts} == {
        OWN: "train",
        THEIRS: "transfer",
    }
    newer(of, 1)
    assert {cause for _, _, cause in plan(of)["d9"].parts} == {"train"}


def test_paper_literal_relays_only_requested_blocks() -> None:
    of = exchange("paper-literal")
    first = plan(of)["d9"]
    assert {part.block for part, _, _ in first.parts} == {p.block for p in statuses(first)} == {OWN}
    of.on_request("d9", of.parts(THEIRS))
    assert {part.block for part, _, _ in plan(of)["d9"].parts} == {THEIRS}


def test_a_request_for_a_block_that_is_not_held_is_ignored() -> None:
    of = exchange()
    of.on_request("d9", of.parts(GONE))
    assert GONE not in {part.block for part, _, _ in plan(of)["d9"].parts}


def test_newest_sends_no_version_that_the_neighbour_reports_to_hold() -> None:
    of = exchange("newest")
    of.on_manifest("d9", manifest(0, "unchanged"))
    assert PART not in {part for part, _, _ in plan(of)["d9"].parts}


def test_newest_learns_nothing_from_an_older_manifest() -> None:
    of = exchange("newest")
    plan(of)
    of.on_manifest("d9", manifest(ZERO, "unchanged"))
    assert plan(of)["d9"].parts == ()


def test_newest_sends_no_device_the_block_that_it_owns() -> None:
    assert THEIRS not in {part.block for _, part in sent(plan(exchange("newest"), "d1"))}


# -- what arrived ----------------------------------------------------------------------------------------


def test_average_mixes_the_copy_that_was_sent() -> None:
    of = exchange()
    of.on_copy("d9", PART, 3, 5, "copy")
    assert close(of, 5, manifest(3, "sent")) == (Mix(PART, ((0.5, "copy"),)),)


def test_average_mixes_an_unchanged_copy_again() -> None:
    of = exchange()
    of.on_copy("d9", PART, 3, 5, "copy")
    close(of, 5, manifest(3, "sent"))
    assert close(of, 6, manifest(3, "unchanged", round_=6)) == (Mix(PART, ((0.5, "copy"),)),)


def test_average_mixes_an_untrained_block_as_zero() -> None:
    assert close(exchange(), 5, manifest(ZERO, "unchanged")) == (Mix(PART, ((0.5, None),)),)


@pytest.mark.parametrize(
    "said",
    [None, manifest(4, "withheld"), manifest(4, "sent"), manifest(4, "unchanged"), manifest(2, "unchanged")],
    ids=["no manifest", "withheld", "sent but not here", "unchanged since what never came", "an older one"],
)
def test_average_leaves_absent_weight_with_the_own_copy(said: Manifest | None) -> None:
    of = exchange()
    of.on_copy("d9", PART, 3, 4, "copy")
    close(of, 4, manifest(3, "sent", round_=4))
    assert close(of, 5, said) == ()


def test_a_copy_for_a_later_round_waits_for_that_round() -> None:
    of = exchange()
    of.on_copy("d9", PART, 3, 6, "early copy")
    assert close(of, 5, manifest(3, "sent")) == ()
    assert close(of, 6, manifest(3, "sent", round_=6)) == (Mix(PART, ((0.5, "early copy"),)),)


def test_average_mixes_the_copy_of_this_round_even_if_a_later_one_has_arrived() -> None:
    of = exchange()
    of.on_copy("d9", PART, 5, 5, "fifth")
    of.on_copy("d9", PART, 6, 6, "sixth")
    assert close(of, 5, manifest(5, "sent")) == (Mix(PART, ((0.5, "fifth"),)),)
    assert close(of, 6, manifest(6, "sent", round_=6)) == (Mix(PART, ((0.5, "sixth"),)),)


def test_newest_replaces_the_copy_by_the_newest_arrival() -> None:
    of = exchange("newest")
    of.on_copy("d7", PART, 3, 5, "third")
    of.on_copy("d8", PART, 4, 5, "fourth")
    of.on_copy("d9", PART, 2, 5, "second")
    assert close(of, 5) == (Mix(PART, ((1.0, "fourth"),), 4),)
    assert of.held[PART] == 4


def test_newest_ignores_an_older_version() -> None:
    of = exchange("newest")
    newer(of, 4)
    of.on_copy("d9", PART, 4, 5, "same")
    assert close(of, 5) == ()


def test_newest_relays_the_version_that_it_received() -> None:
    of = exchange("newest")
    plan(of, "d8")
    of.on_copy("d9", PART, 3, 5, "copy")
    close(of, 5)
    assert sent(plan(of, "d8")) == [("d8", PART)]


def test_newest_never_overwrites_the_own_block() -> None:
    of = exchange("newest")
    of.on_copy("d9", Part(OWN, "early"), 99, 5, "forged")
    assert close(of, 5) == ()
    assert of.held[Part(OWN, "early")] == 0


def test_an_arrived_copy_is_mixed_once() -> None:
    of = exchange("newest")
    of.on_copy("d9", PART, 3, 5, "copy")
    assert close(of, 5) and not close(of, 6)


# -- what is forgotten -----------------------------------------------------------------------------------


def test_after_a_drop_nothing_of_the_block_is_left() -> None:
    of = exchange("average", OWN, THEIRS, GONE)
    plan(of, "d8", budget=100)
    of.on_request("d8", of.parts(GONE))
    for round_ in (5, 9):  # one copy is mixed and cached, the other waits
        for group in SIZES:
            of.on_copy("d9", Part(GONE, group), round_, round_, f"values of d2, round {round_}")
    close(of, 5, manifest(5, "sent", Part(GONE, "early")))
    assert any(value == GONE for value in everything(of))
    of.drop_block(GONE)
    kept = list(everything(of))
    assert GONE not in kept and not [x for x in kept if isinstance(x, str) and "values of d2" in x]


def test_a_drop_leaves_other_blocks_alone() -> None:
    of = exchange("average", OWN, THEIRS, GONE)
    of.on_copy("d9", PART, 3, 5, "copy")
    of.drop_block(GONE)
    assert set(of.held) == {*of.parts(OWN), *of.parts(THEIRS)}
    assert close(of, 5, manifest(3, "sent")) == (Mix(PART, ((0.5, "copy"),)),)


def test_after_a_new_link_everything_is_sent_again() -> None:
    of = exchange()
    plan(of)
    of.on_copy("d9", PART, 3, 9, "of the old link")
    of.forget_peer("d9")
    assert len(sent(plan(of))) == 4
    assert close(of, 9, manifest(3, "sent", round_=9)) == ()


def test_only_the_newest_copies_of_a_peer_far_ahead_are_kept() -> None:
    made = exchange()
    for round_ in range(1000):
        made.on_copy("d1", PART, round_, round_, object())
    assert [*made._arrived["d1"][PART]] == [996, 997, 998, 999]
