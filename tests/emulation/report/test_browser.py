"""The report in a real browser: desktop, phone and dark mode, values at the pointer, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emulation.report import html
from tests.support import synthetic_run
from tests.support.browsers import NEEDS_CHROMIUM, PHONE, check_on_a_phone, errors_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return html.write(synthetic_run.with_deletions(synthetic_run.write(tmp_path / "run")))


@contextmanager
def opened(browser: Browser, report: Path, **options: object) -> Iterator[Page]:
    """The report. An error of its script, and a request for any other file, fail the test."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page, asked = context.new_page(), list[str]()
    errors = errors_of(page)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert errors == [] and asked == [report.as_uri()]
    context.close()


def test_a_chart_shows_its_values_at_the_pointer(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        assert page.locator(".tip").is_hidden()
        page.locator("section[aria-labelledby=result] .stop").first.hover()
        shown = page.locator(".tip").inner_text()
        assert "round 0" in shown and "%" in shown
        page.mouse.move(1, 1)
        assert page.locator(".tip").is_hidden()
        receipt = page.inner_text("article.receipt")
        assert "Receipt" in receipt and "d2@0" in receipt


def test_the_report_fits_a_phone_and_follows_dark_mode_and_axe_finds_nothing(
    browser: Browser, report: Path
) -> None:
    with opened(browser, report, **PHONE) as page:
        dark, light = check_on_a_phone(page)
        assert light == "rgb(255, 255, 255)" != dark
