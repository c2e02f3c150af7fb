"""Scenarios: accepted values, refused values, and the texts of refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.scenario.loading import dump, load
from peers.config import DeviceConfig
from peers.errors import InputError

SHIPPED = sorted((Path(__file__).parents[3] / "scenarios").glob("*.toml"))
EVENTS = """
[devices]
count = 3
[round]
count = 20
[[event]]
round = 9
kind = "join"
device = "d7"
[[event]]
round = 5
kind = "leave"
device = "d2"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my lab.toml"
    path.write_text(EVENTS)
    return path


def refusal(path: Path, *overrides: str, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path, overrides, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(path: Path) -> None:
    assert load(path).name == path.stem


def test_defaults_names_and_order(file: Path) -> None:
    scenario = load(file)
    assert scenario.name == "my-lab"
    assert [event.round for event in scenario.event] == [5, 9]
    assert scenario.initial_devices == ("d0", "d1", "d2")
    assert scenario.all_devices == ("d0", "d1", "d2", "d7")
    assert scenario.eval.every == 5


def test_device_config_is_what_devices_read(file: Path) -> None:
    config = load(file, ["train.lr=0.25"]).device_config()
    assert type(config) is DeviceConfig
    assert config.train.lr == 0.25 and config.round.count == 20


def test_overrides_are_toml_or_else_text(file: Path) -> None:
    overrides = ["model.name=/some/where", "adapter.rank.early=4", "isolation.leak=1", "event.1.device='d1'"]
    scenario = load(file, overrides, seed=7)
    assert scenario.model.name == "/some/where"
    assert scenario.adapter.rank == {"early": 4}
    assert scenario.isolation.leak == 1.0
    assert scenario.seed == 7
    assert scenario.event[0].device == "d1"


def test_dump_runs_again_from_any_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = load(file, ["data.kind=jsonl", "data.path=here"])
    again = tmp_path / "again.toml"
    again.write_text(dump(scenario))
    data = scenario.data.model_copy(update={"path": str(tmp_path / "here")})
    assert load(again) == scenario.model_copy(update={"data": data})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("round.cuont=3", ["round.cuont", "unknown key", "did you mean count?", "local_steps"]),
        ("nonsense=1", ["nonsense: unknown key", "seed", "event"]),
        ("event.0.when=3", ["event.0.when: unknown key", "round, kind, device"]),
        ("adapter.rank=eight", ["adapter.rank: 'eight'", "a valid integer or a table"]),
        ("adapter.rank={early=0}", ["adapter.rank.early: 0", "greater than or equal to 1"]),
        ("seed=true", ["seed: True", "a valid integer"]),
        ("train.lr=inf", ["train.lr: inf", "finite"]),
        ("round=3", ["round: 3", "a table"]),
        ("event=[{round=1}]", ["event.0.kind: is missing"]),
        ("model.device=tpu", ["model.device: 'tpu'", "auto|cpu"]),
        ("topology.kind=star", ["topology.kind: 'star'", "full, random-geometric, regular, ring"]),
        ("correction.policy=steepest", ["correction.policy: 'steepest'", "uniform"]),
        ("radio.allocator=greedy", ["radio.allocator: 'greedy'", "equal-share, fifo", "residual"]),
        ("radio.codecs=['int2']", ["radio.codecs.0: 'int2'", "'fp32', 'fp16', 'bf16', 'int8' or 'int4'"]),
        ("radio.codecs=[]", ["radio.codecs: []", "at least 1 item"]),
        ("radio.codecs=['int8']", ["radio.codecs: has no meaning with radio.allocator = 'fifo'"]),
        ("radio.pricing.step=1", ["radio.pricing: has no meaning with radio.allocator = 'fifo'", "'priced'"]),
        ("radio.pricing.target=0", ["radio.pricing.target: 0", "greater than 0"]),
        ("clock=sidereal", ["clock: 'sidereal'", "'real' or 'virtual'"]),
        ("plugins=['no_such_lab']", ["plugins: 'no_such_lab'"]),
        ("what", ["--set what", "a.b=value"]),
    ],
)
def test_a_refusal_is_one_clear_line(file: Path, override: str, words: list[str]) -> None:
    message = refusal(file, override)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("event.1.device=d9", ["event.1.device: 'd9' cannot leave", "live at round 5 are d0, d1, d2"]),
        ("event.0.device=d1", ["event.0.device: 'd1' cannot join: it is live"]),
        ("event.1.round=19", ["event.1.round: 19 is too late", "0 to 18"]),
        ("event.1.kind=stall", ["event.1.duration_s", "seconds"]),
        ("event.1.duration_s=3", ["event.1.duration_s", "stall"]),
        ("adapter.max_devices=2", ["devices.count: 3 slots", "no more than 2"]),
        ("devices.count=1", ["cannot leave"]),
    ],
)
def test_events_must_be_possible(file: Path, override: str, words: list[str]) -> None:
    message = refusal(file, override)
    assert all(word in message for word in words), message


def test_a_retired_block_keeps_its_slot(file: Path) -> None:
    load(file, ["adapter.max_devices=3"])
    message = refusal(file, "adapter.max_devices=3", "event.1.kind=retire")
    assert "event.0.device: 4 slots" in message


def test_the_last_device_must_stay(file: Path) -> None:
    assert "last live device" in refusal(
        file, "devices.count=1", "event=[{round=3, kind='leave', device='d0'}]"
    )


def test_newest_refuses_leak(file: Path) -> None:
    assert "one writer" in refusal(file, "mixing.mode=newest", "isolation.leak=0.5")


def test_lookahead_refuses_fisher_steps(file: Path) -> None:
    said = refusal(file, "correction.fisher=true", "correction.policy=lookahead")
    assert "correction.fisher" in said and "allowed: false, or another policy" in said


@pytest.mark.parametrize("mode", ["newest", "paper-literal"])
def test_an_allocator_requires_mode_average(file: Path, mode: str) -> None:
    said = refusal(file, "radio.allocator=residual", f"mixing.mode={mode}")
    assert f"radio.allocator: 'residual' with mixing.mode = '{mode}'" in said
    assert "allowed: 'fifo', or mixing.mode = 'average'" in said
    load(file, ["radio.allocator=residual", "radio.codecs=['fp32', 'int4']"])
    twice = refusal(file, "radio.allocator=residual", "radio.codecs=['int4', 'int4']")
    assert "names one twice" in twice


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("radio.kind=radio", ["radio.kind: 'radio'", "'fixed', 'wireless' or 'trace'"]),
        ("radio.latency_s=0", ["radio.latency_s: 0", "greater than or equal to 0.000001"]),
        ("radio.loss=2", ["radio.loss: 2", "less than or equal to 1"]),
        ("radio.beta_Bps=-1", ["radio.beta_Bps: -1", "greater than or equal to 0"]),
        ("radio.wireless.area_km=1", ["radio.wireless.area_km: unknown key", "did you mean area_m?"]),
        ("radio.wireless.interference=2", ["radio.wireless.interference: 2", "less than or equal to 1"]),
        ("radio.wireless.positions.d0=3", ["radio.wireless.positions.d0: 3", "a list"]),
        ("radio.wireless.positions.d0=[1]", ["radio.wireless.positions.d0: [1]", "at least 2 items"]),
        (
            "radio.wireless.positions.d0=[1,2,3]",
            ["radio.wireless.positions.d0: [1, 2, 3]", "at most 2 items"],
        ),
        ("radio.wireless.positions.d0=['x', 1]", ["radio.wireless.positions.d0.0: 'x'", "a valid number"]),
        (
            "radio.wireless.positions.d8=[1, 2]",
            ["radio.wireless.positions.d8: is no device", "d0, d1, d2, d7"],
        ),
        ("radio.wireless.positions.d7=[1, 101]", ["radio.wireless.positions.d7: [1.0, 101.0]", "0 to 100.0"]),
        ("radio.mobility.kind=jumping", ["radio.mobility.kind: 'jumping'", "'none' or 'random-waypoint'"]),
        ("radio.mobility.speed_mps=-1", ["radio.mobility.speed_mps: -1", "greater than 0"]),
        ("radio.trace=t.csv", ["radio.trace: has no meaning with radio.kind = 'wireless'", "with 'trace'"]),
    ],
)
def test_bad_radio_values_are_refused(file: Path, override: str, words: list[str]) -> None:
    message = refusal(file, "radio.kind=wireless", override)
    assert all(word in message for word in words), message


def test_sizes_of_unknown_devices_are_refused(file: Path) -> None:
    message = refusal(file, "data.kind=authors", "data.sizes={d0 = 3, d99 = 4}")
    assert "data.sizes: 'd99' is no device of the run; allowed: d0, d1, d2, d7" in message
    assert message.startswith("--set: ")
    pool = ("data.partition=iid", 'data.devices=["d0", "d1", "d2", "d7", "d8"]')
    for sizes in (["data.sizes={d0 = 3, d7 = 0}"], ["data.sizes={d8 = 3}", *pool]):  # d7 joins later
        assert load(file, ["data.kind=authors", *sizes]).data.sizes


def test_settings_of_another_radio_kind_are_refused(file: Path) -> None:
    for override, table in (("wireless.area_m=9", "wireless"), ("mobility.speed_mps=9", "mobility")):
        message = refusal(file, f"radio.{override}")
        assert f"radio.{table}: has no meaning with radio.kind = 'fixed'; allowed: with 'wireless'" in message


def test_bad_traces_are_refused(file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    given = ["radio.kind=trace", f"radio.trace={trace}"]
    assert "radio.trace: is missing" in refusal(file, given[0])
    assert f"--set: radio.trace: {trace}: cannot be read (No such file" in refusal(file, *given)
    trace.write_text("round,src,dst,rate_Bps\n0,d0,d1,fast\n")
    assert f"{trace}: line 2: rate_Bps: 'fast'" in refusal(file, *given)
    trace.write_text("round,src,dst,rate_Bps\n0,d0,d1,9\n0,d2,d0,9\n")
    assert f"{trace}: no line names d7" in refusal(file, *given)


def test_dump_makes_the_trace_absolute(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.csv").write_text("round,src,dst,rate_Bps\n0,d0,d1,9\n0,d2,d7,9\n")
    scenario = load(file, ["radio.kind=trace", "radio.trace=here.csv"])
    again = tmp_path / "again.toml"
    again.write_text(dump(scenario))
    monkeypatch.chdir("/")
    radio = scenario.radio.model_copy(update={"trace": str(tmp_path / "here.csv")})
    assert load(again) == scenario.model_copy(update={"radio": radio})


def test_dump_keeps_a_wireless_radio(file: Path, tmp_path: Path) -> None:
    scenario = load(file, ["radio.kind=wireless", "radio.wireless.positions.d0=[1, 2]"])
    again = tmp_path / "again.toml"
    again.write_text(dump(scenario))
    assert load(again) == scenario


def test_a_refusal_names_the_place(file: Path) -> None:
    assert refusal(file, "round.count=x").startswith("--set: round.count")
    assert refusal(file, clock="sidereal").startswith("--clock: clock")
    file.write_text("[round]\ncount = 'x'\n")
    assert refusal(file).startswith(f"{file}: round.count: 'x'")


def test_unreadable_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[round\n")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "No such file" in refusal(tmp_path / "absent.toml")
    assert "directory" in refusal(tmp_path)
    assert "is not TOML" in refusal(broken)
    assert "is not TOML" in refusal(binary)
