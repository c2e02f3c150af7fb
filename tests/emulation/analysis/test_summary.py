"""summary.json: every figure of a run whose records are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import summary
from tests.support import synthetic_run
from tests.support.synthetic_run import GRANTED, gone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return synthetic_run.write(tmp_path / "run")


def build(folder: Path) -> dict[str, Any]:
    return json.loads(json.dumps(summary.build(folder), allow_nan=False))


def append(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_the_summary_has_all_keys(folder: Path) -> None:
    found = build(folder)
    assert set(found) >= {"devices", "links", "events", "rounds", "accuracy", "final", "budget"}
    assert (found["schema"], found["seed"], found["clock"]) == (1, 0, "real")
    event = found["events"][0]
    assert set(event["leaver_accuracy"]) == {"before", "deleted", "corrected", "end"}
    assert set(event["survivor_accuracy"]) == {"before", "deleted", "corrected", "end"}
    assert set(event["control_accuracy"]) == {"before", "deleted", "corrected", "end"}
    assert set(event["joiner_accuracy"]) == {"end_mean", "end_min"}
    assert set(found["rounds"][0]) >= {"round", "seconds", "bytes", "consensus_error", "spectral_rho"}


def test_devices(folder: Path) -> None:
    d0, _, d2, _ = build(folder)["devices"]
    assert (d0["id"], d0["slot"], d0["incarnation"], d0["pid"], d0["exit"]) == ("d0", 0, 0, 100, 0)
    assert (d0["rounds"], d2["rounds"]) == (10, 5)
    assert d0["bytes_sent"] == 100 * (10 + 5 + 2)  # to d1, d2 and d3
    assert d0["adapter_sha256"] == "hash-d0" and d2["adapter_sha256"] is None


def test_each_end_of_a_link_is_counted_where_it_happens(folder: Path) -> None:
    links = {(link["src"], link["dst"]): link for link in build(folder)["links"]}
    link = links["d0", "d1"]
    assert link["sent_bytes"] == link["received_bytes"] + sum(link["dropped_bytes"].values())
    assert link["dropped_bytes"] == {"tombstoned": 7}
    assert links["d1", "d0"]["dropped_bytes"] == {}
    assert sum(link["bytes_by_cause"].values()) == link["sent_bytes"]


def test_the_receiver_counts_latencies(folder: Path) -> None:
    found = build(folder)
    assert found["latency_buckets"] == {"first_s": 1e-6, "per_decade": 32}
    link = next(link for link in found["links"] if (link["src"], link["dst"]) == ("d0", "d1"))
    assert link["latency_counts"] == {"96": 9, "104": 1}


def test_a_link_without_records_of_its_receiver(folder: Path) -> None:
    (folder / "devices" / "d3" / "metrics.jsonl").unlink()
    (folder / "devices" / "d3" / "events.jsonl").unlink()
    links = {(link["src"], link["dst"]): link for link in build(folder)["links"]}
    assert (links["d0", "d3"]["sent_bytes"], links["d0", "d3"]["received_bytes"]) == (200, 0)


def test_leave(folder: Path) -> None:
    event = build(folder)["events"][0]
    assert event["leaver_accuracy"] == pytest.approx(
        {"before": 0.9, "deleted": 0.04, "corrected": 0.05, "end": 0.05}
    )
    survivors = {"before": 0.98, "deleted": 0.1, "corrected": 1.0, "end": 1.0}
    assert event["survivor_accuracy"] == pytest.approx(survivors)
    assert event["control_accuracy"] == pytest.approx(dict.fromkeys(survivors, 0.05))
    assert event["detected_s"] == pytest.approx({"p50": 0.15, "max": 0.2})
    assert event["joiner_accuracy"] == {"end_mean": None, "end_min": None}


def test_recovery_is_the_first_round_at_95_per_cent(folder: Path) -> None:
    event = build(folder)["events"][0]
    assert event["rounds_to_recover"] == 3
    # rounds 5, 6, 7 of d0 and d1, to one another
    assert event["bytes_to_recover"] == 100 * 2 * 3


def test_no_recovery_is_null(folder: Path) -> None:
    assert not build(folder)["unfinished"]
    path = folder / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["round"] > 4 and line["tag"] in ("round", "corrected", "end") and "accuracy" in line:
            line["accuracy"] |= {"d0": 0.92, "d1": 0.92}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    event = build(folder)["events"][0]
    assert (event["rounds_to_recover"], event["bytes_to_recover"]) == (None, None)


def test_recovery_needs_all_survivors(folder: Path) -> None:
    assert not build(folder)["unfinished"]
    path = folder / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    early = [e for e in lines if (e.get("device"), e["round"], e["tag"]) == ("d0", 6, "round")]
    early[0]["accuracy"] |= {"d0": 1.0, "d1": 1.0}
    lines = [e for e in lines if (e.get("device"), e["round"]) != ("d1", 6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert build(folder)["events"][0]["rounds_to_recover"] == 3


def test_join(folder: Path) -> None:
    event = build(folder)["events"][1]
    assert event["joiner_accuracy"] == pytest.approx({"end_mean": (0.8 + 0.9 + 0.9) / 3, "end_min": 0.8})
    assert event["leaver_accuracy"] == {"before": None, "deleted": None, "corrected": None, "end": None}
    assert event["detected_s"]["p50"] == pytest.approx(0.5)
    assert event["survivors"] == ["d0", "d1"]


def test_rounds(folder: Path) -> None:
    rounds = build(folder)["rounds"]
    assert [r["round"] for r in rounds] == list(range(10))
    assert rounds[0]["seconds"] == 1.0
    assert [r["bytes"] for r in rounds] == [600] * 5 + [200] * 3 + [600] * 2
    assert rounds[0]["spectral_rho"] == pytest.approx(0.0, abs=1e-12)
    assert rounds[0]["consensus_error"] == 0.01


def test_rho_is_null_if_a_row_is_missing(folder: Path) -> None:
    path = folder / "devices" / "d2" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    rounds = build(folder)["rounds"]
    assert rounds[3]["spectral_rho"] is not None and rounds[4]["spectral_rho"] is None


def test_newest_has_no_mixing_matrix(folder: Path) -> None:
    path = folder / "scenario.toml"
    path.write_text(path.read_text().replace('mode = "average"', 'mode = "newest"'))
    first = build(folder)["rounds"][0]
    assert first["spectral_rho"] is None and first["graph_rho"] is not None


def test_final_accuracy(folder: Path) -> None:
    found = build(folder)
    assert found["accuracy"]["devices"] == found["accuracy"]["shards"] == ["d0", "d1", "d3"]
    assert found["accuracy"]["matrix"] == [[1, 1, 0.8], [1, 1, 0.9], [1, 1, 0.9]]
    final = {"loss": 0.25, "accuracy_own": 2.9 / 3, "accuracy_all": 8.6 / 9, "accuracy_min": 0.8}
    assert found["final"] == pytest.approx(final)
    assert (found["control_accuracy"], found["other_wording_accuracy"]) == pytest.approx((0.05, 0.02))


def test_a_violation_is_a_device_and_round_over_its_grant(folder: Path) -> None:
    budget = build(folder)["budget"]
    lines = 10 + 10 + 5 + 2
    assert budget == {
        "granted_bytes": GRANTED * lines,
        "spent_bytes": 800 * (lines - 1) + GRANTED + 1,
        "violations": 1,
    }


def test_what_was_spent_is_what_was_sent_also_before_and_after_the_rounds(folder: Path) -> None:
    before = build(folder)
    assert before["outside_rounds_bytes"] == 0
    for device in before["devices"]:
        path = folder / "devices" / device["id"] / "events.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        links = synthetic_run.links(device["id"], 9)
        sent = sum(link["sent_bytes"] for link in links.values()) + 500  # to the first peer: its goodbye
        next(iter(links.values()))["sent_bytes"] += 500
        last = {"t_s": 99.0, "round": 9, "event": "finished", "links": links, "spent_total_bytes": sent}
        path.write_text("".join(json.dumps(e) + "\n" for e in [*lines, last]))
    found = build(folder)
    sent = sum(device["bytes_sent"] for device in found["devices"])
    assert found["budget"]["spent_bytes"] == sent
    assert sent == sum(entry["bytes"] for entry in found["rounds"]) + found["outside_rounds_bytes"]
    assert found["outside_rounds_bytes"] >= 500 * len(found["devices"])
    assert found["budget"]["granted_bytes"] == before["budget"]["granted_bytes"]


def test_counters_of_a_restarted_device_are_summed(folder: Path) -> None:
    device = folder / "devices" / "d3"
    before = build(folder)["devices"][3]["bytes_sent"]
    again = synthetic_run.metric("d3", 9) | {"round": 10, "t0_s": 12.5, "t1_s": 13.0}
    append(device / "events.jsonl", {"t_s": 12.0, "round": -1, "event": "started", "pid": 9})
    append(device / "metrics.jsonl", again)
    assert build(folder)["devices"][3]["bytes_sent"] == 2 * before
    assert build(folder)["rounds"][-1]["bytes"] == before


def test_an_incomplete_last_line_is_left_out(folder: Path) -> None:
    with (folder / "devices" / "d0" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 10, "pha')
    assert build(folder)["devices"][0]["rounds"] == 10


def test_the_first_detection_after_the_event_counts(folder: Path) -> None:
    append(folder / "devices" / "d0" / "events.jsonl", gone("d2", 9.9))
    assert build(folder)["events"][0]["detected_s"]["max"] == pytest.approx(0.2)


def test_a_run_without_records(folder: Path) -> None:
    for path in folder.rglob("*.jsonl"):
        path.unlink()
    found = build(folder)
    assert found["final"] == {"loss": None, "accuracy_own": None, "accuracy_all": None, "accuracy_min": None}
    assert found["events"][0]["rounds_to_recover"] is None
    assert found["budget"]["violations"] == 0


def test_an_unfinished_run_has_the_last_evaluations_of_live_devices(folder: Path) -> None:
    assert not build(folder)["unfinished"]
    path = folder / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line.get("tag") != "end"))
    found = build(folder)
    assert found["unfinished"]
    assert found["accuracy"]["devices"] == ["d0", "d1", "d3"]  # d2 has gone
    assert found["final"]["accuracy_all"] is not None
