"""Citations of docs/method.md, links between documents, and the width of Markdown lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
CITING = ("peers", "transport", "coordinator_free", "emulation", "scenarios", "deploy", "tests", "docs")
SUFFIXES = {".py", ".toml", ".md", ".html", ".yml", ".yaml"}
SOURCES = sorted(p for folder in CITING for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)
DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]
WIDTH = 120
WIDE = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}  # not yet rewritten

# "method 5 and 9", "method 6-7"
CITATION = re.compile(r"\bmethod[\s#]+(\d+(?:(?:\s*[-–]\s*|,\s*|\s+and\s+)\d+)*)")
SPAN = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$", re.MULTILINE)
SECTION = re.compile(r'<a id="method-(\d+)"></a>\n\n## \1\. ')
ANCHOR = re.compile(r'<a id="([^"]+)">')
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def cited_sections(text: str) -> set[int]:
    """Sections of the method that `text` cites; a range counts with all that lies between."""
    found = set()
    for citation in CITATION.findall(text):
        for first, last in SPAN.findall(citation):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def sections(method: str) -> set[int]:
    """Sections of docs/method.md that have a number, a heading and an anchor."""
    return set(map(int, SECTION.findall(method)))


def anchors(markdown: str) -> set[str]:
    """Anchors of a document: explicit ones, and those that GitHub makes of headings."""
    plain = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(plain)}
    return slugs | set(ANCHOR.findall(markdown))


def broken_links(document: Path, markdown: str) -> Iterator[str]:
    """Relative links that name no file, or no anchor of the Markdown file that they name."""
    for link in LINK.findall(CODE.sub("", markdown)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = document.parent / path if path else document
        if path and not target.exists():
            yield f"{link}: no such file"
        elif anchor and target.suffix == ".md":
            text = markdown if target == document else target.read_text(encoding="utf-8")
            if anchor not in anchors(text):
                yield f"{link}: no such anchor"


def wide_lines(markdown: str) -> list[int]:
    """Numbers of lines wider than WIDTH; a line with a URL may be wider."""
    lines = enumerate(markdown.splitlines(), start=1)
    return [number for number, line in lines if len(line) > WIDTH and "://" not in line]


def test_every_cited_section_of_the_method_exists() -> None:
    known = sections((ROOT / "docs" / "method.md").read_text(encoding="utf-8"))
    assert known == set(range(1, 13))
    wrong = {
        path.relative_to(ROOT).as_posix(): sorted(missing)
        for path in SOURCES
        if (missing := cited_sections(path.read_text(encoding="utf-8")) - known)
    }
    assert wrong == {}


def test_the_finder_reads_citations_in_all_their_forms() -> None:
    forms = {
        f"(method {4})": {4},
        f"(method {5} and 9)": {5, 9},
        f"(method {6}-8)": {6, 7, 8},
        f"(method {6}, eq. 24-33)": {6},
        f"(method {6}: <= 5 %)": {6},
        f"the workload of method {4}.": {4},
        f"# of a long line (method\n# {3} and 9)": {3, 9},
        f"(method {99})": {99},
        "a method of 5 steps": set(),
    }
    assert {text: cited_sections(text) for text in forms} == forms


def test_a_citation_of_a_missing_section_is_found() -> None:
    method = '<a id="method-1"></a>\n\n## 1. Setting\n\n## 2. Bases without an anchor\n'
    assert sections(method) == {1}
    assert cited_sections(f"see method {1} and 2") - sections(method) == {2}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_an_anchor(document: Path) -> None:
    assert list(broken_links(document, document.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text('# One thing, two\n<a id="own"></a>\n', encoding="utf-8")
    here = (
        "# Here\n[a](b.md) [b](b.md#one-thing-two) [c](b.md#own) [d](#here)\n"
        "[e](https://x.org/y.md) `[f](z.md)`\n"
        "[g](missing.md) [h](b.md#missing) [i](#missing)\n"
    )
    found = list(broken_links(tmp_path / "a.md", here))
    assert found == ["missing.md: no such file", "b.md#missing: no such anchor", "#missing: no such anchor"]


NARROW = [path for path in DOCUMENTS if path.name not in WIDE]


@pytest.mark.parametrize("document", NARROW, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_of_markdown_are_not_wide(document: Path) -> None:
    assert wide_lines(document.read_text(encoding="utf-8")) == []


def test_a_wide_line_is_found() -> None:
    assert wide_lines("short\n" + "x" * (WIDTH + 1) + "\n" + f"https://x.org/{'x' * WIDTH}\n") == [2]
