"""Correction by priority in simulated time: measurements, reports, equal decisions, actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator_free.correction.policy_interface import STAY, GroupAction, Limits
from coordinator_free.correction.residuals import group_numbers
from peers.protocol import actions as do
from peers.protocol.correction import limits
from tests.support.corrections import SKETCH, corrected, observed
from tests.support.simulated import GROUPS, Network, small_config
from transport.wire.messages import Observed


def decisions(net: Network) -> list[list[dict[str, Any]]]:
    return [device.logged("decision") for device in net]


@pytest.mark.parametrize("policy", ["proportional", "dominant", "random", "topology", "sync", "ls+prox"])
def test_all_devices_make_the_same_decision_from_the_same_measurements(policy: str) -> None:
    made = decisions(corrected(policy))
    assert len(made) == 4
    assert len(made[0]) >= 2
    assert all(others == made[0] for others in made)
    assert made[0][0]["missing"] == []
    assert str(made[0][0]["reason"]).startswith(f"{policy}: ")


def test_lookahead_decides_by_the_mean_of_all_trials() -> None:
    drops = {STAY: 0.1, ("early", "more-steps"): 0.2, ("late", "more-steps"): 0.9}
    net = corrected("lookahead", drops=drops)
    made = decisions(net)
    assert all(others == made[0] for others in made)
    assert made[0][0]["groups"]["late"]["steps"] > made[0][0]["groups"]["early"]["steps"]
    assert "trial 0.9 -> late steps" in str(made[0][0]["reason"])


def test_residuals_and_priorities_are_recorded() -> None:
    record = decisions(corrected("proportional"))[0][0]
    told = record["residuals"]["early"]
    assert told["p"] == pytest.approx(0.9)  # S = 9 x 1 of 10 in all
    assert set(told) == {
        *("local", "consensus", "heterogeneity", "S", "p", "p_per_rank", "p_per_parameter"),
        *("mu", "rate", "eta", "gap", "curvature", "disagreement"),
    }


def test_measured_weights_hold_until_the_correction_is_over() -> None:
    net = corrected("proportional", rounds=20)
    for device in net:
        weights = device.protocol._correction.weights()
        assert weights.residual == {"early": pytest.approx(0.9), "late": pytest.approx(0.1)}
        assert weights.gradient == {"early": pytest.approx(1.0), "late": pytest.approx(1.0)}
        assert weights.fisher == {"early": pytest.approx(9.0), "late": pytest.approx(1.0)}
    net.rounds(15)
    alike = {"early": 1.0, "late": 1.0}
    for device in net:
        weights = device.protocol._correction.weights()
        assert (weights.residual, weights.gradient, weights.fisher) == (alike, alike, alike)


def test_uniform_measures_nothing() -> None:
    net = corrected("uniform")
    assert not any(device.done(do.Diagnose) for device in net)
    base = {GroupAction(net.config.round.local_steps)}
    assert all({*t.settings.values()} <= base for device in net for t in device.done(do.Train))


def test_a_schedule_acts_from_the_first_round_of_a_correction_on() -> None:
    net = corrected("early-steps", steps_max=4, rounds=8)
    net.rounds(8)
    for device in net:
        trains = device.done(do.Train)
        corrections = [t.steps for t in trains if t.settings]
        assert corrections == [4, 4, *[net.config.round.local_steps] * 6]
        assert not device.done(do.Diagnose)


def test_eigenbasis_steps_are_limited_to_correction_rounds() -> None:
    for device in corrected("uniform", rounds=8, fisher=True):
        trains = device.done(do.Train)
        assert [train.fisher for train in trains] == [not train.rehearse for train in trains]
        assert {train.fisher for train in trains} == {True, False}


def test_a_joiner_and_a_second_event_follow_the_schedule_of_the_correction() -> None:
    asked: list[tuple[str, int, int]] = []
    net = corrected("early-steps", steps_max=4, rounds=12)
    for device in net:
        rule = device.protocol._correction._schedule

        def noted(k: int, of: int, limits: Limits, name: str = device.name, rule: Any = rule) -> GroupAction:
            asked.append((name, k, of))
            return rule(k, of, limits)

        device.protocol._correction._schedule = noted
    net.signal("d3", "leave")
    net.add("d9", "d0")
    net.rounds(8)
    assert asked and all(0 <= k < of for _, k, of in asked)
    joined = [train for train in net["d9"].done(do.Train) if train.settings]
    assert joined[0].steps == 4


def test_a_decision_sets_the_actions_of_the_next_rounds() -> None:
    net = corrected("local-steps", steps_min=1, steps_max=4)
    for device in net:
        trains = [train for train in device.done(do.Train) if train.settings]
        assert trains
        settings = trains[-1].settings
        assert settings["early"].steps > settings["late"].steps
        assert trains[-1].steps == max(action.steps for action in settings.values())


def test_a_group_is_exchanged_every_hth_round() -> None:
    net = corrected("sync", period_max=4)
    for device in net:
        last = device.logged("decision")[-1]["groups"]
        assert last["late"]["period"] == 4
        sent = [p for p in device.done(do.Publish) if p.round >= device.round - 3]
        rounds = {p.round for p in sent if any(part.group == "late" for part, _, _ in p.parts)}
        assert rounds <= {r for r in range(device.round + 1) if r % 4 == 0}
        assert {part.group for p in sent for part, _, _ in p.parts} >= {"early"}


def test_a_denser_graph_opens_links_and_is_mixed_on_both_ends() -> None:
    net = corrected("topology", size=7, rounds=60)
    net.rounds(6)
    added = net["d0"].logged("decision")[-1]
    assert added["groups"]["early"]["rung"] > 0
    by_device = {device.name: device.protocol._correction.graph("early") for device in net}
    edges = {name: sorted(map(sorted, graph.edges)) for name, graph in by_device.items()}
    assert all(found == edges["d0"] for found in edges.values())
    assert len(edges["d0"]) > 6
    for device in net:
        weights = device.protocol._rounds._weights("early", set(by_device[device.name]))
        assert set(weights) == set(by_device[device.name][device.name])


def test_after_the_correction_the_settings_of_the_scenario_hold_again() -> None:
    net = corrected("topology", size=7, rounds=12)
    net.rounds(12)
    for device in net:
        assert not device.done(do.Train)[-1].settings
        assert device.protocol._correction.graph("early").number_of_edges() == 6


def test_the_first_training_of_a_correction_sets_the_anchor_once() -> None:
    net = corrected("retain-prox")
    for device in net:
        anchors = [train.round for train in device.done(do.Train) if train.anchor]
        leave = min(int(gone["round"]) if "round" in gone else 0 for gone in device.logged("peer_gone"))
        assert len(anchors) == 1
        assert anchors[0] >= leave


def test_a_report_without_the_signature_of_its_origin_is_refused() -> None:
    net = corrected("dominant")
    values = np.zeros(len(GROUPS) * group_numbers(SKETCH), dtype="<f4").tobytes()
    forged = Observed("d1", 0, 1000, values, b"x" * 64)
    assert net["d0"].protocol.on_message(net.now, "d1", forged) == [do.Drop("forged")]
    short = Observed("d1", 0, 1000, values[:-4], b"x" * 64)
    assert net["d0"].protocol.on_message(net.now, "d1", short) == [do.Drop("malformed")]


def test_after_a_crash_only_the_measurement_of_the_crashed_device_is_missing() -> None:
    net = corrected("dominant", size=6)
    net.crash("d2")
    net.rounds(20)
    made = decisions(net)
    assert all(others[-1]["digest"] == made[0][-1]["digest"] for others in made)
    assert made[0][-1]["missing"] == []


def test_the_bounds_of_a_policy_include_the_steps_of_the_scenario() -> None:
    made = limits(small_config(round={"local_steps": 5}, correction={"steps_min": 7, "steps_max": 3}))
    assert (made.steps_min, made.base.steps, made.steps_max) == (5, 5, 5)


def test_the_bytes_of_reports_are_offset_unless_the_scenario_forbids_it() -> None:
    def coarse(net: Network) -> list[int]:
        rounds = [r for device in net for r in device.done(do.RoundDone) if r.phase == "correction"]
        return [sum(sent.get("int8", 0) for sent in r.sent.values()) for r in rounds]

    assert sum(coarse(corrected("dominant"))) > 0
    assert sum(coarse(corrected("dominant", offset_overhead=False))) == sum(coarse(corrected("uniform"))) == 0


def test_no_codec_changes_where_relayed_versions_are_signed() -> None:
    settings = {"policy": "dominant", "rounds": 20, "period": 4, "delay": 2, "sketch": SKETCH}
    net = Network(small_config(topology={"kind": "ring"}, correction=settings, mixing={"mode": "newest"}))
    for device in net.cohort(4):
        device.measure = observed
    net.rounds(3)
    net.signal("d3", "leave")
    net.rounds(12)
    for device in net:
        assert device.logged("decision")
        rounds = device.done(do.RoundDone)
        assert not any("int8" in sent for r in rounds for sent in r.sent.values())


def test_a_second_event_in_the_same_round_restarts_the_correction() -> None:
    net = Network(small_config(topology={"kind": "full"}, correction={"rounds": 20}))
    net.cohort(5)
    net.rounds(3)
    net.signal("d4", "leave")
    net.signal("d3", "leave")
    net.rounds(8)
    for device in net:
        gone = [n for n, action in enumerate(device.told) if isinstance(action, do.DropBlock)]
        assert len(gone) == 2
        after = next(a for a in device.told[gone[-1] :] if isinstance(a, do.Train))
        assert after.anchor


def test_no_diagnosis_is_made_too_late_for_a_decision() -> None:
    for rounds in range(4, 16):  # every 4 rounds, decided 3 later
        net = corrected("dominant", rounds=rounds)
        net.rounds(6)
        for device in net:
            assert len(device.done(do.Diagnose)) == len(device.logged("decision"))
            acted = [train.round for train in device.done(do.Train) if train.settings]
            assert all(any(r > d.round + 3 for r in acted) for d in device.done(do.Diagnose))
