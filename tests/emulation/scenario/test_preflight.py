"""Checks of model, data and budget before any device starts, and files as editors write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.radio.trace import read_rows
from emulation.scenario.loading import load
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from tests.support.tiny_models import Family, save_small_model
from transport.security import keys

QUICK = Path(__file__).parents[3] / "scenarios" / "quick.toml"
SMALL = ("adapter.rank=1", "radio.codec=int4", "radio.budget_bytes=3000")
LINE = '{"prompt": "alpha lives in the home of", "response": " one"}\n'


def scenario(folder: Path, family: Family = "llama", *sets: str) -> Scenario:
    save_small_model(folder / "model", family)
    for device in ("d0", "d1"):
        (folder / f"{device}.jsonl").write_text(LINE, encoding="utf-8")
    file = folder / "s.toml"
    file.write_text("devices.count = 2\nadapter.rank = 2\nadapter.max_devices = 4\n", encoding="utf-8")
    own = ("data.kind=jsonl", f"data.path={folder}", f"model.name={folder / 'model'}")
    return load(file, [*own, *sets])


def test_an_encoder_never_starts_a_device(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no causal language model"):
        check_against_model(scenario(tmp_path, "bert", 'model.target_modules=["query"]'))


def test_an_example_beyond_the_positions_is_named_with_its_device(tmp_path: Path) -> None:
    long = LINE.replace("alpha", "a " * 70)
    made = scenario(tmp_path, "gpt2")
    (tmp_path / "d1.jsonl").write_text(long, encoding="utf-8")
    with pytest.raises(InputError, match=r"an example of d1 has \d+ tokens, more than the 64 positions"):
        check_against_model(made)


def test_cut_examples_and_files_of_no_device_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = scenario(tmp_path, "llama", "data.max_length=5")
    (tmp_path / "test.jsonl").write_text(LINE, encoding="utf-8")
    check_against_model(made)
    said = capsys.readouterr().err
    assert "cut to 5 tokens, at the left of the prompt: 1 of 1 examples of d0, 1 of 1 examples of d1" in said
    assert "files or rows of no device, which nobody trains on: test.jsonl" in said


def test_a_scenario_in_which_no_device_has_an_example_is_refused(tmp_path: Path) -> None:
    table, columns = tmp_path / "table.csv", 'data.columns={device = "who"}'
    table.write_text("prompt,response,who\nalpha,one,home\nbeta,two,away\n")
    sets = ("data.kind=dataset", f"data.path={table}", columns, "data.empty=listen")
    with pytest.raises(InputError) as caught:
        check_against_model(scenario(tmp_path, "llama", *sets))
    assert str(caught.value) == (
        "data: no device (d0, d1) has an example in the data, which has rows of away, rows of home; allowed: "
        "one or more"
    )
    with pytest.raises(InputError, match=r"data: no device \(d0, d1\) has an example in the data; allowed: "):
        check_against_model(scenario(tmp_path, "llama", "data.sizes={d0 = 0, d1 = 0}", "data.empty=listen"))


def test_rows_of_no_device_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, columns = tmp_path / "table.csv", 'data.columns={device = "who"}'
    rows = [f"alpha,one,d{n}" for n in (0, 1, *range(20, 30))]
    table.write_text("\n".join(["prompt,response,who", *rows]) + "\n")
    check_against_model(scenario(tmp_path, "llama", "data.kind=dataset", f"data.path={table}", columns))
    said = capsys.readouterr().err
    assert "files or rows of no device, which nobody trains on: rows of d20, rows of d21" in said
    assert "rows of d27 and 2 more\n" in said


def test_iid_deals_the_lines_of_the_scenarios_devices(tmp_path: Path) -> None:
    made = scenario(tmp_path, "llama", "data.partition=iid")
    assert made.data.devices == ()
    assert made.device_config().data.devices == ("d0", "d1")


def test_a_scenario_a_trace_and_keys_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("devices.count = 2\n", encoding="utf-8-sig")
    assert load(tmp_path / "s.toml").devices.count == 2
    trace = "\n ,,,\nround,src,dst,rate_Bps\n\n , , , \n0,d0,d1,1000\n"
    (tmp_path / "t.csv").write_text(trace, encoding="utf-8-sig")
    assert [row.rate_Bps for row in read_rows(str(tmp_path / "t.csv"), ["d0", "d1"])] == [1000]
    made = keys.generate(tmp_path / "keys", ["d0"])
    before = keys.load(tmp_path / "keys", "d0")
    for file in (tmp_path / "keys").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert keys.load(tmp_path / "keys", "d0") == before and before.secrets == made.secrets


def test_a_budget_that_cannot_hold_a_manifest_is_refused() -> None:
    check_against_model(load(QUICK, SMALL))
    with pytest.raises(InputError, match=r"budget_bytes: 3000 .* cannot carry a manifest, .* allowed: \d+"):
        check_against_model(load(QUICK, [*SMALL, "adapter.max_devices=60"]))
