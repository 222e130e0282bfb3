"""Pages in a real browser: they draw, log nothing to the console, load nothing, and react to clicks.

`make test-browser` installs Playwright and Chromium. Without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.reports import LABELS, hostile_run, search_folder
from tests.helpers.serving import Server, untrained
from txclf.core import storage
from txclf.evaluation import evaluate
from txclf.reports import report

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed. Run make test-browser.")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 800}}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, or the one that Playwright installed."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"Chromium does not start. Run make test-browser. {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open and scroll a page. The test fails if the page logs to the console or requests anything."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def visit(path: str, size: str = "desktop", scheme: str = "light") -> Any:
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda request: trouble.append(request.url) if _fetches(request.url) else None)
        page.goto(Path(path).as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        for place in range(0, page.evaluate("document.documentElement.scrollHeight"), 500):
            page.evaluate(f"window.scrollTo(0, {place})")
            page.wait_for_timeout(30)
        page.evaluate("window.scrollTo(0, 0)")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert trouble == []


def _fetches(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = hostile_run(tmp_path_factory.mktemp("browser"))
    evaluate.evaluate(run.run_folder)
    return report.report([run.run_folder])


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_run_page_any_size_and_scheme_draws_all_charts(opened: Open, run_page: str, size: str, scheme: str) -> None:
    page = opened(run_page, size, scheme)
    assert undrawn(page) == []
    assert page.title() == "hostile – txclf"
    assert page.locator("img").count() == 0
    assert page.locator("main script, .js-plotly-plot script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert scrollers(page) == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


def test_run_page_tables_sort_and_mistakes_are_filtered(opened: Open, run_page: str) -> None:
    page = opened(run_page)
    cells = page.locator("#classes tbody td:nth-child(4)")
    f1 = [float(text) for text in cells.all_text_contents()]
    assert f1 == sorted(f1)
    page.click("#classes th:nth-child(4) button")
    assert [float(text) for text in cells.all_text_contents()] == f1[::-1]
    page.click("#classes th:nth-child(1) button")
    assert page.locator("#classes tbody td:nth-child(1)").all_text_contents() == sorted(LABELS, key=str.lower)

    rows = page.locator("#mistakes li:visible")
    total = rows.count()
    assert total > 3
    page.fill("#mistakes [data-find]", "${alert(1)}")
    few = rows.count()
    assert 0 < few < total
    assert all("${alert(1)}" in text for text in rows.all_text_contents())
    page.click("#mistakes [data-clear]")
    page.select_option("#mistakes [data-true]", LABELS[0])
    assert {row.get_attribute("data-true") for row in rows.all()} == {LABELS[0]}
    page.click("#mistakes [data-clear]")
    assert rows.count() == total
    page.select_option("#mistakes [data-kind]", "right")
    assert {row.get_attribute("data-kind") for row in rows.all()} == {"right"}
    assert all(row.get_attribute("data-true") == row.get_attribute("data-predicted") for row in rows.all())


def test_run_page_click_on_a_confusion_cell_lists_its_mistakes(opened: Open, run_page: str) -> None:
    page = opened(run_page)
    ticks = page.locator("#confusion .ytick text")
    given = ticks.all_text_contents()
    assert len(given) == len(LABELS)
    page.select_option("#confusion [data-order]", "rows")
    support = dict(
        zip(
            page.locator("#classes tbody td:nth-child(1)").all_text_contents(),
            map(int, page.locator("#classes tbody td:nth-child(5)").all_text_contents()),
            strict=True,
        )
    )
    wanted = sorted(support, key=lambda label: -support[label])
    assert [text[:15] for text in ticks.all_text_contents()] == [label[:15] for label in wanted]
    page.select_option("#confusion [data-shade]", "mistakes")
    # Position on the screen of the first cell with rows that is not on the diagonal.
    place = page.evaluate(
        """() => {
          const chart = document.querySelector('#confusion [data-chart]');
          chart.scrollIntoView({block: 'center'});
          const z = chart.data[0].z;
          for (let i = 0; i < z.length; i++) for (let j = 0; j < z.length; j++) if (i !== j && z[i][j]) {
            const box = chart.getBoundingClientRect(), f = chart._fullLayout;
            return [box.x + f._size.l + f.xaxis.c2p(j), box.y + f._size.t + f.yaxis.c2p(i), i, j, z[i][j]];
          }
        }"""
    )
    x, y, i, j, count = place
    page.mouse.move(x, y)
    page.wait_for_timeout(300)
    page.mouse.click(x, y)
    page.wait_for_timeout(300)
    rows = page.locator("#mistakes li:not([hidden])")
    assert rows.count() == 30 < count
    page.click("#mistakes [data-more]")
    assert rows.count() == count
    assert {row.get_attribute("data-true") for row in rows.all()} == {wanted[i]}
    assert {row.get_attribute("data-predicted") for row in rows.all()} == {wanted[j]}


def test_run_page_tabs_and_axes_change_the_charts(opened: Open, run_page: str) -> None:
    page = opened(run_page)
    assert page.locator("[data-split=test]").is_visible()
    assert not page.locator("[data-split=valid]").is_visible()
    page.click("[data-tab=valid]")
    assert page.locator("[data-split=valid]").is_visible()
    assert not page.locator("[data-split=test]").is_visible()
    page.locator("[data-chart=confusion-valid]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-chart=confusion-valid] svg")
    last = "document.querySelector('[data-chart=loss]').data[0].x.at(-1)"
    steps = page.evaluate(last)
    page.select_option("#axis", "1")
    assert page.evaluate(last) == 2 < steps
    shapes = page.evaluate("document.querySelector('[data-chart=lengths]').layout.shapes.map(shape => shape.x0)")
    data = page.evaluate("content.data")
    truncated = any(split["truncated_rows"] for split in data["splits"])
    assert shapes == ([data["max_length"] + 0.5] if truncated else [])
    page.select_option("[data-split=valid] [data-class]", "1")
    page.locator("[data-chart=roc-valid]").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    assert page.evaluate("document.querySelector('[data-chart=roc-valid]').data.length") == 1


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


def test_pages_every_control_clicked_sends_nothing_away(opened: Open, run_page: str, tmp_path: Path) -> None:
    search = report.report([search_folder(tmp_path).run_folder])
    both = report.report([str(Path(run_page).parent)] * 2, storage.join(str(tmp_path), "both.html"))
    for path in (run_page, search, both):
        page = opened(path)
        windows: list[Any] = []
        page.context.on("page", lambda window, seen=windows: seen.append(window))
        names = clicked(page)
        assert "Zoom in" in names
        assert not [name for name in names if "share chart" in name.lower() or "cloud" in name.lower()]
        assert page.evaluate("window.open('https://example.org')") is None
        assert windows == []
        assert page.url.split("#")[0] == Path(path).as_uri()


@pytest.mark.parametrize("size", SIZES)
def test_search_page_click_on_a_trial_highlights_it(opened: Open, tmp_path: Path, size: str) -> None:
    page = opened(report.report([search_folder(tmp_path).run_folder]), size, "dark")
    assert undrawn(page) == []
    assert page.locator("[data-line]").count() == 6
    page.click("[data-trial='3']")
    assert page.locator("[data-line='3']").get_attribute("stroke-width") == "4"
    assert page.locator("tr.picked").get_attribute("data-trial") == "3"
    page.select_option("#key", "1")
    assert page.evaluate("document.querySelector('[data-chart=slice]').layout.xaxis.type") == "category"
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert scrollers(page) == []


def test_comparison_page_draws_one_curve_per_run(opened: Open, run_page: str, tmp_path: Path) -> None:
    folder = str(Path(run_page).parent)
    page = opened(report.report([folder, folder], storage.join(str(tmp_path), "both.html")), "phone")
    assert undrawn(page) == []
    assert page.evaluate("document.querySelector('[data-chart=valid_loss]').data.length") == 2
    assert scrollers(page) == []
    assert "same accuracy" in str(page.locator("#verdict .big").text_content())


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a server without Ray for each task and return the addresses. `multilabel` requires a token."""
    folder = tmp_path_factory.mktemp("serve")
    settings: dict[str, dict[str, Any]] = {
        "classify": {},
        "multilabel": {"data": {"text": ["title", "body"]}},
        "seq2seq": {"data": {"target": "target"}},
    }
    examples = {
        "classify": ("--example", "the lazy <b>dog</b>"),
        "multilabel": ("--example", '{"title": "a", "body": "b"}'),
    }
    tokens = {"multilabel": {"TXCLF_SERVE_TOKEN": "s3cret"}}
    started = {
        task: Server(
            untrained(folder, task=task, **some), "--replicas", "0", *examples.get(task, ()), **tokens.get(task, {})
        )
        for task, some in settings.items()
    }
    yield {task: server.url for task, server in started.items()}
    for server in started.values():
        server.end()


@pytest.fixture
def tried(browser: Any) -> Iterator[Open]:
    """Open a served page. The test fails if the page logs to the console or requests another host."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def visit(url: str, size: str = "desktop", scheme: str = "light") -> Any:
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda one: None if one.url.startswith((url, "data:")) else trouble.append(one.url))
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    # The browser logs every refused request.
    assert [one for one in trouble if "the server responded with a status of" not in one] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_serve_page_keyboard_alone_predicts_and_explains(
    tried: Open, servers: dict[str, str], size: str, scheme: str
) -> None:
    page = tried(servers["classify"], size, scheme)
    page.keyboard.type("the quick <img src=x onerror=alert(1)> fox")  # the field has the focus
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#words span")
    assert page.locator("#scores li").count() == 3
    shares = page.eval_on_selector_all("#scores .fill", "all => all.map(one => parseFloat(one.style.width))")
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares == sorted(shares, reverse=True)
    assert page.locator("#words").text_content() == "the quick <img src=x onerror=alert(1)> fox"
    assert page.locator("img").count() == 0
    first = page.locator("#scores [aria-pressed=true]").get_attribute("data-label")
    # Tab past the two buttons to the second label and select it.
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "first => document.querySelector('#scores [aria-pressed=true]').dataset.label !== first", arg=first
    )
    second = page.locator("#scores li:nth-child(2) button").get_attribute("data-label")
    assert second in page.locator("#explanation").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert scrollers(page) == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    page.fill("textarea", "  ")
    page.click("#go")
    page.wait_for_selector("[role=alert]:has-text('blank')")


def test_serve_page_multilabel_shows_columns_and_thresholds_after_the_token(
    tried: Open, servers: dict[str, str]
) -> None:
    page = tried(servers["multilabel"], "phone")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert]:has-text('wrong')")
    page.fill("#token", "s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector("textarea[name=body]")
    page.fill("textarea[name=title]", "the fox")
    page.fill("textarea[name=body]", "a lazy dog")
    page.click("#go")
    page.wait_for_selector("#words span")
    assert page.locator("#scores .mark").count() == 3
    given = page.locator("#scores .predicted button").evaluate_all("all => all.map(one => one.dataset.label)")
    assert "low" in given
    assert "high" not in given
    assert page.locator("#words .words").all_text_contents() == ["the fox", "a lazy dog"]


def test_serve_page_example_batch_and_curl(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["classify"])
    page.click("#examples button")
    page.wait_for_selector("#words span")
    assert page.locator("#words").text_content() == "the lazy <b>dog</b>"

    page.click("#batch summary")
    page.fill("#lines", "the fox\n\nit's a <i>dog</i>\n" + "quick\n" * 300)  # more than one request holds
    page.click("#many button")
    page.wait_for_selector("#rows tbody tr:nth-child(302)")
    assert page.locator("#rows thead th").all_text_contents() == ["text", "label", "probability"]
    assert page.locator("#rows tbody tr:nth-child(2) td").first.text_content() == "it's a <i>dog</i>"

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#field-0", "it's")
    page.click("#curl")
    page.wait_for_selector("#curl:has-text('Copied')")
    command = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(["sh", "-c", command], capture_output=True, check=True, text=True)
    assert json.loads(answer.stdout)["predictions"][0]["label"] in ("low", "mid", "high")
    page.click("#copy")
    page.wait_for_selector("#copy:has-text('Copied')")
    lines = str(page.evaluate("navigator.clipboard.readText()")).splitlines()
    assert (len(lines), lines[0]) == (303, "text\tlabel\tprobability")


def test_serve_page_curl_of_several_columns_has_no_token(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["multilabel"])
    page.fill("#token", "s3cret")
    page.keyboard.press("Enter")
    page.click("#examples button")
    page.wait_for_selector("#words span, #explanation:has-text('word')")
    assert page.input_value("#field-1") == "b"
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.click("#curl")
    page.wait_for_selector("#command:not([hidden])")
    command = str(page.locator("#command").text_content())
    assert "s3cret" not in command
    assert "Bearer $TXCLF_SERVE_TOKEN" in command
    page.click("#batch summary")
    page.fill("#lines", "a title\tand a body\nonly a title")
    page.click("#many button")
    page.wait_for_selector("#rows tbody tr:nth-child(2)")
    assert page.locator("#rows tbody td:nth-child(2)").all_text_contents() == ["and a body", ""]


def test_serve_page_seq2seq_shows_the_output(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["seq2seq"])
    page.fill("textarea", "the quick brown fox")
    page.click("#go")
    page.wait_for_selector("#output:not([hidden])")
    assert not page.locator("#labels").is_visible()
    page.goto(servers["seq2seq"] + "/docs")
    assert page.locator("h2 code").all_text_contents() == [
        "POST /predict",
        "POST /explain",
        "GET /model",
        "GET /healthz",
        "GET /metrics",
    ]
