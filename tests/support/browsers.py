"""A real browser for tests of pages: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW_MS = 30_000  # a busy machine
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
NEEDS_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A browser of its own. The test is skipped where playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install 'unweft[dev]'")
    with api.sync_playwright() as playwright:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium has none for root
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield found
        found.close()


def errors_of(page: Page) -> list[str]:
    """The errors of the page's scripts and console, also those that follow."""
    errors = list[str]()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


def background(page: Page) -> str:
    """The colour behind the page."""
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def check_on_a_phone(page: Page) -> tuple[str, str]:
    """A page that was opened as PHONE is not too wide, and axe finds nothing.

    Returns its background in dark and in light mode.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    dark = background(page)
    assert axe.Axe().run(page).response["violations"] == []
    page.emulate_media(color_scheme="light")
    assert axe.Axe().run(page).response["violations"] == []
    return dark, background(page)
