"""Each benchmark at its smallest size. The tests check the measures and not the speed."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from emulation.bench import (
    accounting,
    churn,
    join,
    kernel_tbf,
    membership,
    partition,
    resume,
    rounds,
    shaper,
    transport,
    watch,
    wire,
)
from emulation.bench import load as full_load
from emulation.bench.harness.figures import Findings, Measure, shown
from emulation.cli import app, main
from emulation.commands import bench
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from transport.wire.errors import WireError
from transport.wire.packing import unpack

HALVES = """
clock = "virtual"
[devices]
count = 4
[data]
persons = 1
[topology]
kind = "full"
[mixing]
mode = "newest"
[round]
count = 50
deadline_s = 2.0
[radio]
rate_Bps = 600_000 # so that rounds take their time: the halves have to find each other again
[[event]]
round = 4
kind = "partition"
groups = [["d0", "d1"], ["d2", "d3"]]
[[event]]
round = 10
kind = "leave"
device = "d3"
[[event]]
round = 16
kind = "heal"
"""


def names(findings: Findings, group: str) -> list[str]:
    return [m.name for m in findings.measures if m.group == group]


def by_name(findings: Findings, name: str) -> Measure:
    return next(m for m in findings.measures if m.name == name)


def findings(*measures: Measure) -> Findings:
    return Findings("title", "unweft bench x", list(measures), ["a note"])


# -- figures -------------------------------------------------------------------------------------------
def test_a_ratio_is_the_median_of_the_ratios_of_one_repetition_each() -> None:
    base = Measure("g", "base", "MB/s", (1.0, 2.0, 4.0))
    ours = Measure("g", "ours", "MB/s", (3.0, 2.0, 2.0), "base", least=1.0)
    found = findings(base, ours)
    assert (found.ratio(base), found.ratio(ours), found.met(base), found.met(ours)) == (None, 1.0, None, True)


def test_without_a_reference_the_bounds_apply_to_the_median() -> None:
    good, bad = Measure("g", "a", "MB", (4.0,), most=5), Measure("g", "b", "MB", (4.0, 6.0, 7.0), most=5)
    assert (findings(good).met(good), findings(bad).met(bad)) == (True, False)
    band = Measure("g", "c", "", (0.98,), least=0.99, most=1.01)
    assert findings(band).met(band) is False


def test_a_missing_measurement_fails_and_is_null_in_json() -> None:
    nothing = Measure("g", "a", "MB/s", (math.nan,), least=1.0)
    found = findings(nothing)
    assert found.met(nothing) is False
    row = json.loads(json.dumps(found.to_dict(), allow_nan=False))["measures"][0]
    assert (row["median"], row["samples"], row["met"]) == (None, [None], False)


def test_the_table_shows_every_figure_and_note() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    findings(
        Measure("g", "base", "MB/s", (1234.5, 2345.6)), Measure("g", "ours", "MB/s", (1.0, 1.0), "base", 0.8)
    ).print(console)
    text = console.export_text()
    for word in ("title", "base", "1,790", "1,234 ... 2,346", "0.00 x", ">= 0.8", "no", "a note"):
        assert word in text
    assert [shown(v) for v in (0, 0.5, 12345.0, 1e-6)] == ["0", "0.5", "12,345", "1.000e-06"]


# -- each benchmark ------------------------------------------------------------------------------------
@pytest.mark.timeout(240)  # sixteen processes; on a loaded machine they take a while to start
def test_transport() -> None:
    found = transport.run(sizes=(1 << 16,), moved_bytes=1 << 20, repetitions=1)
    assert len(names(found, "64 KiB")) == 8
    assert all(sample > 0 for m in found.measures for sample in m.samples)
    for name in ("wire / payload, all checks", "wire / payload, CURVE"):
        assert 1 < by_name(found, name).median < 1.02


def test_shaper() -> None:
    found = shaper.run(cases=200, rates_bps=(10_000_000,), window_s=0.3, repetitions=1)
    assert by_name(found, "violations in 200 cases").samples == (0.0,)
    assert by_name(found, "unweft").samples[0] > 0
    assert bool(found.notes) == ("kernel tbf" not in names(found, "10 Mbit/s"))


def test_the_first_fill_of_a_bucket_is_not_counted() -> None:
    second = 10**9
    arrived = [(0, 50), (1, 50), (second, 50), (2 * second, 100), (3 * second, 100)]
    assert shaper.after_depth(arrived, 100) == 100.0
    assert math.isnan(shaper.after_depth(arrived, 200))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may make namespaces")
def test_without_root_there_is_no_kernel_bucket_and_a_reason() -> None:
    with pytest.raises(kernel_tbf.NotPossible, match="root"), kernel_tbf.kernel_link():
        pass


def test_hostile_messages_of_the_benchmark_are_refused_for_their_contents() -> None:
    for name, frames in wire.HOSTILE.items():
        with pytest.raises(WireError) as refusal:
            unpack(frames)
        assert "wrong number of fields" not in str(refusal.value), name


def test_wire() -> None:
    found = wire.run(batch=2, repetitions=1, random_messages=200)
    assert len({m.group for m in found.measures}) == len(wire.SAMPLES) + len(wire.HOSTILE) + 1
    for name in ("accepted", "another exception than WireError"):
        assert by_name(found, name).samples == (0.0,)
    asked = [m for m in found.measures if m.name == "memory asked for"]
    assert len(asked) == len(wire.HOSTILE) and all(m.median < wire.MOST_MEMORY_MB for m in asked)


@pytest.mark.slow
@pytest.mark.timeout(240)  # the plain reference imports torch in each of its processes
def test_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "AFTER_S", 0.5)
    monkeypatch.setattr(rounds, "WATCHED_S", 1.0)
    found = rounds.run(devices=(3,), window_s=1.0, keys=False, bare=False)
    assert {m.group for m in found.measures} == {"3 devices"}
    assert by_name(found, "unweft").median > 0
    assert by_name(found, "CPU of a round, unweft").median > 0
    assert by_name(found, "PSS, plain").median > 0 and by_name(found, "PSS, unweft").median > 0


@pytest.mark.slow
@pytest.mark.timeout(240)  # a whole run
def test_load() -> None:
    found = full_load.run(devices=(3,), minutes=0.01, rounds=14)
    minutes, busy, _, _, deaths = (m.samples for m in found.measures)
    assert 0.01 < minutes[0] < 5 and 0 < busy[0] <= 100
    assert deaths == (0.0,)


@pytest.mark.slow
def test_membership() -> None:
    found = membership.run(devices=(3,), starts=1, rounds=12, crash=4)
    told = ["agreed after the last was up, p95 of 1", "a crash is suspected", "known to all", "false deaths"]
    assert [m.name for m in found.measures] == told
    assert all(len(m.samples) == 1 for m in found.measures) and found.measures[-1].median == 0
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.timeout(240)  # a whole run
def test_churn_checks_a_run() -> None:
    quick = load(Path(__file__).parents[3] / "scenarios" / "quick.toml")
    found = churn.run(quick, seeds=(3,))
    assert [(m.group, m.name, m.median) for m in found.measures] == [
        ("seed 3", "events survived", 1.0),
        ("seed 3", "violations", 0.0),
    ]
    assert found.notes == ["seed 3: ok"]


@pytest.mark.slow
@pytest.mark.timeout(400)  # three whole runs
def test_resume() -> None:
    found = resume.run(trials=1)
    by = {m.name: m.median for m in found.measures}
    assert found.notes == [] and by["runs that were killed"] == 1 and by["runs with a problem"] == 0


@pytest.mark.slow
@pytest.mark.timeout(240)  # a whole run
def test_watch() -> None:
    found = watch.run(devices=(3,), watched_s=3.0, closed_s=1.0)
    assert by_name(found, "updates of the page").median > 0.5
    assert 0 < by_name(found, "server, page open").median < 100
    assert by_name(found, "memory of the server").median > 1
    assert by_name(found, "rounds of all devices, page closed").median > 0


@pytest.mark.slow
@pytest.mark.timeout(240)  # a whole run
def test_join() -> None:
    found = join.run(count=2, joins=1, cold=0)  # cold ones are started by test_device_cli.py
    forked, cold = found.measures[:3], found.measures[3:]
    assert all(len(m.samples) == 1 and m.median > 0 for m in forked)
    assert all(m.samples == () for m in cold)


@pytest.mark.slow
@pytest.mark.timeout(240)  # a whole run
def test_partition(tmp_path: Path) -> None:
    path = tmp_path / "halves.toml"
    path.write_text(HALVES)
    found = {m.name: m for m in partition.run(load(path)).measures}
    assert found["fewest others known to a survivor"].median == 2
    assert found["violations"].median == 0


@pytest.mark.slow
@pytest.mark.timeout(240)  # two whole runs
def test_accounting_compares_or_gives_the_reason() -> None:
    found = accounting.run(rounds=3)
    if found.notes:
        assert found.notes[0].startswith("not measured: ")
        return
    assert {m.group for m in found.measures} == {"with keys", "in the clear"}
    assert all(m.median > 0 for m in found.measures)


# -- the command ---------------------------------------------------------------------------------------
def test_the_command_prints_and_writes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "run", lambda: findings(Measure("g", "a", "us", (1.0, 2.0))))
    path = tmp_path / "wire.json"
    done = CliRunner().invoke(app, ["bench", "wire", "--json", str(path)])
    assert done.exit_code == 0 and "1 ... 2" in done.output
    assert [row["name"] for row in json.loads(path.read_text())[0]["measures"]] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["nonsense"],
            "allowed: transport, shaper, wire, rounds, accounting, clock, churn, hostile, join, load, "
            "membership, memory, partition, resume, scale, watch",
        ),
        (["clock", "--set", "devices.count=1"], "demo.toml: event.0.device: 'd5' cannot leave"),
        (["rounds", "--n", "1"], "--n: 1; allowed: 2 devices or more"),
        (["wire", "--json", "nowhere/x.json"], "there is no folder"),
        (
            ["wire", "--set", "seed=1"],
            "--set: wire has no scenario; allowed: clock, churn, memory, partition",
        ),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(arguments, said, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unweft", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_benchmark_whose_process_fails_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Findings:
        raise RuntimeError("process 7 ended unasked")

    monkeypatch.setattr(wire, "run", fail)
    done = CliRunner().invoke(app, ["bench", "wire"])
    assert done.exit_code == 1 and "bench wire: process 7" in done.stderr


def test_the_help_has_an_example() -> None:
    assert bench.EXAMPLE.split()[-1] in CliRunner().invoke(app, ["bench", "--help"]).output


def test_set_changes_the_scenario_of_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[Scenario]()

    def run(scenario: Scenario, **numbers: object) -> Findings:
        ran.append(scenario)
        return findings()

    monkeypatch.setattr(churn, "run", run)
    changes = ["--set", "correction.policy=dominant", "--set", "correction.masked=true"]
    assert CliRunner().invoke(app, ["bench", "churn", *changes]).exit_code == 0
    assert (ran[0].correction.policy, ran[0].correction.masked) == ("dominant", True)
    assert ran[0].name == load(bench.SCENARIOS["churn"]).name
