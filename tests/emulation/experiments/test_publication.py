"""Seeds, revisions and the file of a published table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emulation.experiments import publication, run, seeds, sequence, wireless
from emulation.experiments.catalogue import EXPERIMENTS, SCALES
from emulation.experiments.request import Request
from peers.errors import InputError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", (100, 101, 102)),
        ("0-2", (0, 1, 2)),
        ("7,5,7", (7, 5)),
        ("3,", (3,)),
        ("100-101,4", (100, 101, 4)),
    ],
)
def test_seeds_are_a_number_of_judging_seeds_or_named(text: str, found: tuple[int, ...]) -> None:
    assert seeds.parse(text) == found


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "3-1", "0-2000", "5000", "1.5"])
def test_other_seeds_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(InputError, match=r"--seeds: .*allowed: a number of judging seeds"):
        seeds.parse(text)


def test_a_header_names_the_kind_of_seeds() -> None:
    assert seeds.kind(seeds.parse("10")) == "judging seeds"
    assert seeds.kind([0, 1]) == "development seeds"
    assert seeds.kind([0, 100]) == "development and judging seeds"
    assert seeds.ranges([102, 100, 101, 5]) == "5, 100-102"


def cells(*revisions: str) -> list[dict[str, Any]]:
    return [{"seed": 100 + n, "revision": r, "code_sha256": r} for n, r in enumerate(revisions)]


def test_a_header_names_the_revision_and_different_code() -> None:
    assert publication.header(cells("abc", "abc")) == "judging seeds 100-101; revision abc"
    assert (
        publication.header(cells("abc", "def")) == "judging seeds 100-101; DIFFERENT CODE, revisions abc, def"
    )


def test_code_has_a_hash() -> None:
    assert len(publication.origin()["code_sha256"]) == 64 and publication.origin()["revision"]


@pytest.mark.parametrize("few", [range(9), range(100, 109), range(99, 109)])
def test_few_or_development_seeds_are_not_published(few: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "revision", lambda: "abc")
    with pytest.raises(InputError, match=r"--publish: .*allowed: at least 10"):
        publication.check_before(few)


def test_experiments_of_many_long_arms_need_fewer_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "revision", lambda: "abc")
    publication.check_before(range(100, 105), least=5)
    with pytest.raises(InputError, match=r"--publish: .*allowed: at least 5"):
        publication.check_before(range(100, 104), least=5)


def test_each_experiment_has_its_own_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(publication, "revision", lambda: "abc")
    five = Request(SCALES["smoke"], (), tuple(range(100, 105)), tmp_path, publish=tmp_path)
    sequence.check(replace(five, arms=sequence.choose_arms("")))
    wireless.check(replace(five, arms=wireless.SMOKE_ARMS))
    run.check(EXPERIMENTS["baselines"], replace(five, arms=("uniform",)))
    with pytest.raises(InputError, match="allowed: at least 10"):
        run.check(EXPERIMENTS["regimes"], replace(five, arms=("uniform",)))


def test_a_changed_workload_does_not_replace_the_published_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--publish: with --set of train\.lr; allowed: without --set"):
        Request(SCALES["smoke"], (), tuple(range(100, 110)), tmp_path, 1, {"train.lr": 0.1}, tmp_path).check()


def test_changed_code_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "revision", lambda: "abc-dirty")
    with pytest.raises(InputError, match="abc-dirty; allowed: a commit without changes"):
        publication.check_before(range(100, 110))


def test_rows_of_one_revision_are_published(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    copy = publication.publish(
        cells("abc", "abc"), tmp_path / "rows.csv", tmp_path / "docs" / "data", "x-full"
    )
    assert copy == tmp_path / "docs" / "data" / "x-full.csv" and copy.read_text() == "a\n1\n"
    for revisions in (("abc", "def"), ("abc-dirty",)):
        with pytest.raises(InputError, match="allowed: one, without changes"):
            publication.publish(cells(*revisions), tmp_path / "rows.csv", tmp_path, "x")
