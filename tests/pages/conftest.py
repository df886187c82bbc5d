"""A browser to look at pages with: Chromium without a window, and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gates.reports import page_of_all, render
from tests.conftest import chromium
from tests.support import reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ("report", "hostile", "invalid", "totals", "all")
"""One of everything; one in which every foreign word is hostile; one under other conditions; one that knows totals
alone; the page of all candidates."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages that are looked at."""
    folder = tmp_path_factory.mktemp("pages")
    totals = reports.story(reports.POLICY, {"toolcall": 63, "bugfind": 23}, {"toolcall": 90, "bugfind": 8})
    (folder / "report.html").write_bytes(render(reports.report(said=HOSTILE), "html"))
    other = reports.report(chat_template="9" * 64)
    (folder / "hostile.html").write_bytes(render(reports.hostile(HOSTILE), "html"))
    (folder / "invalid.html").write_bytes(render(other, "html"))
    (folder / "totals.html").write_bytes(render(totals, "html"))
    (folder / "all.html").write_bytes(page_of_all(reports.overview(12)))
    return folder


HOSTILE = "<script>document.title='gone'</script> | @everyone \x1b[31m red \u202e " + "unbroken" * 60


@pytest.fixture
def look(browser: Browser, pages: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page as somebody sees it. Whatever it logs, asks the network for or breaks fails the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(name: str, *, width: int = 1280, **seen: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **seen)
        contexts.append(context)
        context.set_default_timeout(5_000)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if page.url != "about:blank" else None)
        page.goto((pages / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
