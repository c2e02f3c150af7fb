"""`unweft bench scale`: the exponents, the figures of records, the table, and a small measurement."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from emulation.bench import scale
from emulation.bench.harness import calibration
from emulation.bench.harness.crowd import ClosedRound
from emulation.bench.harness.figures import Findings
from emulation.bench.harness.growth import exponent, exponent_of_log
from emulation.bench.harness.variants import Variant
from emulation.bench.harness.virtual_figures import (
    VirtualFigures,
    VirtualRun,
    control_of_rounds,
    latency_quantile_s,
    learnt_between,
    learnt_round,
)
from emulation.cli import main
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from tests.support.synthetic_measurements import SETTINGS
from transport.shaping.accounting import BOUNDS_NS


# -- the fit -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power: float) -> None:
    sizes = [16, 32, 64, 128, 200]
    assert exponent(sizes, [7.0 * n**power for n in sizes]) == pytest.approx(power)


def test_the_exponent_is_that_of_the_least_squares_line() -> None:
    assert exponent([1, math.e, math.e**2], [1.0, math.e**2, math.e]) == pytest.approx(0.5)  # 0, 2, 1


def test_values_without_a_logarithm_are_left_out() -> None:
    assert exponent([4, 8, 16, 32], [4.0, math.nan, 0.0, 32.0]) == pytest.approx(1.0)
    assert math.isnan(exponent([4, 8], [0.0, 3.0])) and math.isnan(exponent([4], [1.0]))
    assert math.isnan(exponent([4, 4], [1.0, 2.0]))


def test_the_exponent_of_log_n_lies_between_constant_and_linear() -> None:
    assert exponent_of_log([16, 256]) == pytest.approx(math.log(2) / math.log(16))


# -- the figures of records ----------------------------------------------------------------------------
def line(number: int, control: int, spent: int = 10) -> dict[str, Any]:
    link = {"bytes_by_cause": {"control": control, "train": 5}, "sent_bytes": control + 5}
    budget = {"spent_bytes": spent, "granted_bytes": 100}
    return {"round": number, "t1_s": 2.0 * number, **budget, "links": {"d1": link, "d2": link}}


def test_control_counts_from_the_end_of_the_first_round() -> None:
    closed = [ClosedRound.of(line(n, control)) for n, control in ((0, 1000), (1, 1100), (2, 1400))]
    assert closed[0].control_bytes == 2000 and closed[0].sent_bytes == 2010
    assert control_of_rounds(closed) == 400.0  # 2 links, 400 bytes more over 2 rounds
    assert math.isnan(control_of_rounds(closed[:1]))


def test_everyones_facts_are_learnt_when_the_mean_over_devices_and_facts_says_so() -> None:
    lines = [
        {"round": 9, "accuracy": {"d0": 1.0, "d1": 0.89}},
        {"round": 9, "accuracy": {"d0": 0.9, "d1": 1.0}},
        {"round": 14, "accuracy": {"d0": 1.0, "d1": 0.92}},
        {"round": 14, "accuracy": {"d0": 0.9, "d1": 1.0}},
    ]
    assert learnt_round(lines) == 14 and learnt_round(lines[:2]) is None
    assert math.isnan(learnt_between(lines[:2]))
    assert learnt_between(lines) == pytest.approx(10 + 5 * (0.95 - 0.9475) / (0.955 - 0.9475))


def test_the_quantile_of_latencies_is_over_all_links() -> None:
    links = [{"latency_counts": {"3": 90}}, {"latency_counts": {"7": 9, "9": 1}}, {}]
    assert latency_quantile_s(links, 0.90) == BOUNDS_NS[3] / 1e9
    assert latency_quantile_s(links, 0.95) == BOUNDS_NS[7] / 1e9
    assert math.isnan(latency_quantile_s([], 0.95))


def test_traffic_is_given_by_round_period_and_share_of_the_budget() -> None:
    closed = [ClosedRound.of(line(n, control)) for n, control in ((0, 0), (1, 10), (2, 20))]
    found = scale._traffic([closed], 0.5)
    assert found["seconds of a round"] == (2.0,)
    assert found["control of a device in a round"] == (20.0,)
    assert found["control of a device in a period"] == (5.0,)  # 4 periods of 0.5 s in a round
    assert found["control, share of the budget"] == (20.0,)


def test_a_measured_run_has_the_figures_of_the_rounds_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes of own and foreign blocks are those of a round. Bytes of links are sums from the start."""
    monkeypatch.setattr(calibration, "settings", lambda scenario: SETTINGS)
    blocks = ({"d0@0": 900}, {"d0@0": 30, "d1@0": 10}, {"d0@0": 50, "d1@1": 20})
    sent = [{**line(n, 100 * n), "block_bytes": of, "withheld": n} for n, of in enumerate(blocks)]
    scenario = Scenario.model_validate(tomllib.loads(Variant(churn=0.5).scenario(4, 4, "virtual", 9, 5, 0)))
    rounds = {"d0": [ClosedRound.of(one) for one in sent], "d1": [ClosedRound.of(sent[0])]}
    found = calibration.measured_run(scenario, rounds, {"learnt_rounds": math.nan})
    assert (found.devices, found.degree, found.churn, found.rounds) == (4, 4, 0.5, 2)
    assert found.figures == {
        **{"own_bytes": 40.0, "foreign_bytes": 15.0, "withheld": 1.5},
        **{"control_bytes": 200.0, "transfer_bytes": 0.0, "sent_bytes": 200.0, "round_s": 2.0},
    }


def test_the_settings_of_a_run_have_the_sizes_of_its_blocks() -> None:
    scenario = Scenario.model_validate(tomllib.loads(Variant().scenario(4, 4, "virtual", 9, 5, 0)))
    found = calibration.settings(scenario)
    assert (found.groups, found.rank, found.input_width) == (3, 2, 128)
    assert found.block_bytes == 18_432  # in fp16: the payload of one copy in a round of tests below


# -- the table -----------------------------------------------------------------------------------------
def measure(monkeypatch: pytest.MonkeyPatch, **found: Any) -> tuple[list[str], Findings]:
    """Run the benchmark with figures that are functions of the number of devices."""
    said: list[str] = []
    monkeypatch.setattr(scale, "_real", lambda count, *_: {n: (float(of(count)),) for n, of in found.items()})
    return said, scale.run((4, 8, 16), virtual=(), say=said.append)


def test_each_column_has_all_sizes_and_the_exponent_with_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, control = "memory of a device, PSS", "control of a device in a period"
    _, found = measure(monkeypatch, **{memory: lambda n: n**2, control: math.log})
    rows = [(m.group, m.name, m.median, found.met(m)) for m in found.measures]
    assert [row[1] for row in rows] == 2 * ["4 devices", "8 devices", "16 devices", "growth"]
    assert rows[2] == (memory, "16 devices", 256.0, False)  # more than 100 MB
    assert rows[3][2] == pytest.approx(2.0) and rows[3][3] is False  # faster than N
    assert rows[7][0] == control and rows[7][3] is True  # as log N


def test_counts_that_must_be_0_have_no_exponent(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = measure(monkeypatch, **{"false deaths": lambda n: n == 16})
    assert [(m.name, found.met(m)) for m in found.measures] == [
        ("4 devices", True),
        ("8 devices", True),
        ("16 devices", False),
    ]


def test_each_size_is_said_when_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = measure(monkeypatch, **{"false deaths": lambda n: 0})
    assert said[0] == "4 devices: false deaths: 0 devices" and len(said) == 3


def test_variants_are_measured_in_virtual_time_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A degree that gives the same complete graph is left out. The figures are saved after each size."""
    done: list[tuple[int, Variant]] = []
    saved: list[int] = []

    def virtual(count: int, variant: Variant, measured: object) -> dict[str, Any]:
        done.append((count, variant))
        return {}

    monkeypatch.setattr(scale, "_virtual", virtual)
    calls: dict[str, Any] = {"say": lambda said: None, "save": lambda found: saved.append(len(done))}
    scale.run((), virtual=(3, 6), degree=(4, 2), churn=(0.2,), budget=(1000,), **calls)
    assert done == [
        *[(3, Variant(4)), (6, Variant(4)), (6, Variant(2))],
        *[(n, Variant(4, 0.2)) for n in (3, 6)],
        *[(n, Variant(4, budget_bytes=1000)) for n in (3, 6)],
    ]
    assert saved == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--degree", "3", "--degree: 3; allowed: an even number of neighbours, 2 or more"),
        ("--churn", "11", "--churn: 11; allowed: more than 0, up to 10 events a round"),
        ("--budget", "0", "--budget: 0; allowed: 1 byte or more"),
        ("--sizes", "none", "--sizes: none; allowed: sizes here or in --virtual"),
    ],
)
def test_variants_that_cannot_be_measured_are_refused(
    option: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["unweft", "bench", "scale", option, value])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("16,x", "--sizes: '16,x'; allowed: numbers of devices between commas, as 16,32, or none"),
        ("2,16", "--sizes: 2, 16; allowed: different numbers from 4 to 512"),
        ("16,16", "--sizes: 16, 16; allowed: different numbers from 4 to 512"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(
    sizes: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["unweft", "bench", "scale", "--sizes", sizes])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_sizes_that_would_learn_for_too_many_rounds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured before, neither with real devices nor of a smaller size. Churn has few rounds."""
    done: list[object] = []

    def measure_one(*given: object) -> dict[str, Any]:
        done.append(given)
        return {}

    for name in ("_real", "_virtual"):
        monkeypatch.setattr(scale, name, measure_one)
    with pytest.raises(InputError, match=r"--virtual: 24 devices of degree 2 need \d\d,\d{3} rounds"):
        scale.run((4,), virtual=(4, 24), degree=(4, 2), say=lambda said: None)
    assert done == []
    scale.run((), virtual=(4, 16), degree=(4, 2), churn=(0.2,), say=lambda said: None)
    assert len(done) == 6


# -- real devices --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(240)  # nine processes of devices
def test_two_small_sizes() -> None:
    found = scale.run((4, 5), rounds=1, virtual=(), idle_s=0.5)
    by = {(m.group, m.name): m for m in found.measures}
    for group in ("start: all but one know each other", "seconds of a round", "memory of a device, PSS"):
        assert all(by[group, name].median > 0 for name in ("4 devices", "5 devices"))
    assert len(by["memory of a device, PSS", "5 devices"].samples) == 5
    assert by["false deaths", "5 devices"].samples == (0.0,)


def test_virtual_figures_of_a_short_run(tmp_path: Path) -> None:
    """All devices in this process. The bytes show that control fits in its share of the budget."""
    text = Variant().scenario(4, 8, "virtual", 2, 1, 0)
    found: VirtualFigures = VirtualRun().run(text, str(tmp_path))
    assert 0 < found.latency_p95_s < 1 and 0 < found.control_share < 0.05
    assert found.control_bytes > 0 and found.violations == 0 and math.isnan(found.learnt_round)
