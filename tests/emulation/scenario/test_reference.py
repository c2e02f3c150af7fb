"""Every key of a scenario is described, and docs/scenario-keys.md shows all of them."""

from __future__ import annotations

import json

import pytest

from emulation.scenario import library, reference
from emulation.scenario.loading import read_toml
from emulation.scenario.schema import Scenario
from tests.support.command_line import ROOT, unweft

ALL = [(path, model, key) for path, model in reference.tables(Scenario) for key in reference.keys(model)]


def test_every_key_has_a_description() -> None:
    bare = [f"{path}.{key}" for path, model, key in ALL if not model.model_fields[key].description]
    assert bare == [] and len(ALL) > 100


def test_every_quantity_has_a_unit() -> None:
    schema = reference.json_schema()
    properties = {**schema["properties"], **schema["$defs"]["RadioConfig"]["properties"]}
    assert properties["budget_bytes"]["unit"] == "bytes" and properties["latency_s"]["unit"] == "s"
    wireless = schema["$defs"]["WirelessConfig"]["properties"]
    assert (wireless["max_bps_Hz"]["unit"], wireless["tx_power_dBm"]["unit"]) == ("bit/s/Hz", "dBm")
    counts = [
        f"{name}.{key}"
        for name, table in schema["$defs"].items()
        for key, about in table["properties"].items()
        if about.get("type") == "integer" and "unit" not in about
    ]
    assert counts == ["MembershipConfig.health_max"]  # a factor


def test_the_page_shows_all_keys_and_is_up_to_date() -> None:
    page = (ROOT / "docs" / "scenario-keys.md").read_text(encoding="utf-8")
    assert page == reference.markdown(), "unweft schema --format markdown > docs/scenario-keys.md"
    assert all(f"- `{key}` (" in page for _, _, key in ALL)
    assert max(map(len, page.splitlines())) <= 120


def test_the_schema_has_the_keys_of_every_shipped_scenario() -> None:
    schema = reference.json_schema()

    def unknown(table: dict[str, object], about: dict[str, object]) -> set[str]:
        known = about["properties"]
        assert isinstance(known, dict)
        return set(table) - set(known)

    for path in library.paths().values():
        table = read_toml(path)
        assert unknown(table, schema) == set()
        for name, inner in table.items():
            if isinstance(inner, dict):
                target = schema["properties"][name]["$ref"].rpartition("/")[2]
                assert unknown(inner, schema["$defs"][target]) == set()


def test_the_command_prints_the_schema(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unweft(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out) == reference.json_schema()
