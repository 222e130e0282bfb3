"""Pages in a real browser: what every page must do, in any size and colours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 800}}
Open = Callable[..., Any]


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium, of the system or as Playwright installed it; skip the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Run make test-browser: it installs Playwright.")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"Chromium does not start. Run make test-browser. {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@contextmanager
def visits(browser: Any, allowed: Callable[[str, str], bool]) -> Iterator[Open]:
    """Give a function that opens an address; at the end the pages may have logged and requested nothing.

    `allowed(url, address)` says whether a page of the address may request the URL.
    """
    contexts: list[Any] = []
    trouble: list[str] = []

    def visit(address: str, size: str = "desktop", scheme: str = "light") -> Any:
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda one: None if allowed(one.url, address) else trouble.append(one.url))
        page.goto(address)
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    # The browser logs every refused request.
    assert [one for one in trouble if "the server responded with a status of" not in one] == []


def scrolled(page: Any) -> Any:
    """Scroll through a page, which draws its charts, and return it at its top."""
    for place in range(0, page.evaluate("document.documentElement.scrollHeight"), 500):
        page.evaluate(f"window.scrollTo(0, {place})")
        page.wait_for_timeout(30)
    page.evaluate("window.scrollTo(0, 0)")
    return page


def looks_right(page: Any, size: str, scheme: str) -> None:
    """Fail unless the page draws its charts, fits the window, scrolls as a whole, and everybody can read it."""
    assert undrawn(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert scrollers(page) == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert barriers(page) == []


def barriers(page: Any) -> list[str]:
    """Return what axe-core finds serious or critical for people who use a screen reader, a keyboard or a large font."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="Run make test-browser: it installs axe.")
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in axe.Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def undrawn(page: Any) -> list[str]:
    """Return the visible charts that are empty."""
    code = "all => all.filter(e => e.offsetParent && !e.querySelector('svg')).map(e => e.dataset.chart)"
    found: list[str] = page.eval_on_selector_all("[data-chart]", code)
    return found


def scrollers(page: Any) -> list[str]:
    """Return the visible elements in the page that scroll by themselves."""
    code = """all => all.filter(e => e.offsetParent && (
      e.scrollHeight > e.clientHeight + 1 && ["auto", "scroll"].includes(getComputedStyle(e).overflowY)
      && e.clientHeight || e.matches(".scroll") && e.scrollWidth > e.clientWidth + 1
    )).map(e => e.className + ": " + e.textContent.slice(0, 40))"""
    found: list[str] = page.eval_on_selector_all("main *", code)
    return found


def clicked(page: Any) -> list[str]:
    """Click every button of the charts and of the page, open every detail, choose every option; return the names."""
    names: list[str] = page.evaluate(
        """() => {
          const name = (one) => one.dataset.title || one.textContent || one.id;
          const found = [];
          for (const one of document.querySelectorAll("summary, button, a, .modebar-btn, [data-trial]")) {
            if (one.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }))) found.push(name(one));
          }
          for (const one of document.querySelectorAll("select")) for (const option of one.options) {
            one.value = option.value;
            one.dispatchEvent(new Event("change", { bubbles: true }));
          }
          return found;
        }"""
    )
    page.wait_for_timeout(500)
    return names


def sends_nothing_away(page: Any, path: str) -> None:
    """Click everything; fail if that opens a window or leaves the page."""
    windows: list[Any] = []
    page.context.on("page", lambda window: windows.append(window))
    names = clicked(page)
    assert "Zoom in" in names
    assert not [name for name in names if "share chart" in name.lower() or "cloud" in name.lower()]
    assert page.evaluate("window.open('https://example.org')") is None
    assert windows == []
    assert page.url.split("#")[0] == Path(path).as_uri()
