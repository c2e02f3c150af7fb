"""report.html: complete, self-contained, and also written for interrupted runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emulation.analysis import records, summary
from emulation.report import html, moments
from tests.support import synthetic_run

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects the pictures and the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if found.get("role") == "img":
            self.pictures.append(str(found.get("aria-label")))
        if found.get("id"):
            self.ids.append(str(found["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return synthetic_run.write(tmp_path / "run")


def test_page_is_self_contained(folder: Path) -> None:
    text = html.write(folder).read_text()
    page = Page(text)
    assert len(page.pictures) == 17 and min(map(len, page.pictures)) > 30
    assert not re.search(r"(src|href)=.[^#]|@import|url\(", text)
    assert len(page.ids) == len(set(page.ids))


def test_page_has_the_events_and_the_result(folder: Path) -> None:
    text = html.write(folder).read_text()
    assert "d2 left at round 4: its facts 90 % → 4 % at once" in text
    assert "-&gt;" not in text
    assert "1 violation" in text and "tombstoned" in text and "hash-d0" in text
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_latencies_of_links_are_shown_as_bars(folder: Path) -> None:
    summary.write(folder)
    text = html.write(folder).read_text(encoding="utf-8")
    assert "█▂" in text or "█▁" in text  # 96 and 104: two quarters of a decade side by side
    assert "0.00093 s to 0.0029 s" in text


def test_a_summary_without_histograms_has_a_page(folder: Path) -> None:
    found = summary.build(folder)
    for link in found["links"]:
        del link["latency_counts"]
    assert "<table" in html.render(records.load(folder), found)


def test_names_from_users_are_escaped(folder: Path) -> None:
    path = folder / "devices" / "d0" / "events.jsonl"
    path.write_text(path.read_text().replace("hash-d0", "<b>hash"))
    assert "<b>" not in html.write(folder).read_text()


def test_an_interrupted_run_has_a_report(folder: Path) -> None:
    for path in folder.rglob("*.jsonl"):
        path.unlink()
    summary.write(folder)
    text = html.write(folder).read_text()
    assert "No device reached the end." in text
    assert Page(text).pictures == []


def test_equal_runs_give_equal_pages(folder: Path) -> None:
    first = html.write(folder).read_text()
    assert html.write(folder).read_text() == first


def test_values_are_shown_at_the_pointer(folder: Path) -> None:
    assert (
        "<title>round 4\nd0: 0.1 s\nd1: 0.1 s\nd2: 0.1 s\nd2 leave</title>" in html.write(folder).read_text()
    )


def test_the_page_is_small(folder: Path) -> None:
    assert html.write(folder).stat().st_size < 200_000


def test_blocks_and_graphs_around_an_event(folder: Path) -> None:
    run = records.load(folder)
    held = {name: set(moments.norms(run, at)) for name, at in moments.moments(run)}
    assert held == {
        "before d2 leave": {"d0@0", "d1@0", "d2@0"},
        "after d2 leave": {"d0@0", "d1@0"},
        "before d3 join": {"d0@0", "d1@0"},
        "after d3 join": {"d0@0", "d1@0", "d3@0"},
        "end": {"d0@0", "d1@0", "d3@0"},
    }
    graphs = {name: moments.graph(run, at) for name, at in moments.moments(run)}
    assert graphs["after d2 leave"] == {("d0", "d1"): 0.5, ("d1", "d0"): 0.5}
    assert len(graphs["before d2 leave"]) == 6
