"""The watch page in a real browser. The tests are few, since each starts a browser of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import synthetic_run
from tests.support.browsers import NEEDS_CHROMIUM, PHONE, SLOW_MS, check_on_a_phone, errors_of
from tests.support.watched import append, event, injected, reopen, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SHOWN_MS = 2000  # a leave is on the page within this time
pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = synthetic_run.write(tmp_path / "run")
    reopen(made)
    return made


@contextmanager
def opened(browser: Browser, folder: Path, **options: object) -> Iterator[Page]:
    """A page of the run once its charts are drawn. An error on its console fails the test.

    Afterwards the server ends, and the page has to say so.
    """
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    errors = errors_of(page)
    with served(folder) as url:
        page.goto(url)
        page.wait_for_selector("body[data-drawn]", timeout=SLOW_MS)
        yield page
        assert errors == []
    page.wait_for_selector("#notice:not([hidden])", timeout=SLOW_MS)
    assert "The connection to the server is lost" in page.inner_text("#notice")
    context.close()


def state_of(page: Page, device: str) -> str | None:
    return page.get_attribute(f"#devices tr[data-device={device}]", "data-state")


def test_a_leave_is_shown_in_time_and_a_reload_and_a_killed_device_lose_nothing(
    browser: Browser, folder: Path
) -> None:
    with opened(browser, folder) as page:
        assert state_of(page, "d0") == "meeting" and page.locator("#devices tr").count() == 4
        append(folder / "devices/d0/events.jsonl", event(20.0, "leaving", kind="leave"))
        left = "#devices tr[data-device=d0][data-state=left]"
        page.wait_for_selector(left, timeout=SHOWN_MS)
        assert "d0 leaves and asks to be forgotten" in page.inner_text("#feed")
        append(folder / "injected.jsonl", injected(21.0, "crash", "d3"))
        page.wait_for_selector("#devices tr[data-device=d3][data-state=crashed]", timeout=SLOW_MS)
        before = [page.inner_text(f"#{part}") for part in ("feed", "devices", "facts", "status")]
        page.reload()
        page.wait_for_selector(left, timeout=SLOW_MS)
        assert [page.inner_text(f"#{part}") for part in ("feed", "devices", "facts", "status")] == before
        assert "2 devices take part" in before[3]


def test_the_page_fits_a_phone_and_follows_dark_mode_and_axe_finds_nothing(
    browser: Browser, folder: Path
) -> None:
    with opened(browser, folder, **PHONE) as page:
        assert check_on_a_phone(page) == ("rgb(20, 23, 27)", "rgb(255, 255, 255)")
