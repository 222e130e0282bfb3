"""Reports in a real browser: they draw, log nothing to the console, load nothing, and react to clicks.

`make test-browser` installs Playwright and Chromium. Without them these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.browsing import SIZES, Open, looks_right, scrolled, sends_nothing_away, undrawn
from tests.helpers.reports import LABELS, hostile_run, search_folder
from txclf.core import storage
from txclf.evaluation import evaluate
from txclf.reports import curves, report


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = hostile_run(tmp_path_factory.mktemp("browser"))
    evaluate.evaluate(run.run_folder)
    return report.report([run.run_folder])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_run_page_any_size_and_scheme_draws_all_charts(opened: Open, run_page: str, size: str, scheme: str) -> None:
    page = opened(run_page, size, scheme)
    looks_right(page, size, scheme)
    assert page.title() == "hostile – txclf"
    assert page.locator("img").count() == 0
    assert page.locator("main script, .js-plotly-plot script").count() == 0


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


@pytest.mark.parametrize("kept", [0, 2])
def test_run_page_without_micro_average_draws_the_curves_that_there_are(
    opened: Open, run_page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    by_class = curves.by_class
    monkeypatch.setattr(curves, "by_class", lambda *arguments: by_class(*arguments)[1 : kept + 1])
    folder = str(Path(run_page).parent)
    page = scrolled(opened(report.report([folder], storage.join(str(tmp_path), "run.html"))))
    page.wait_for_timeout(500)
    assert undrawn(page) == []
    assert page.locator("[data-chart=roc-test]").count() == bool(kept)
    assert page.locator("[data-split=test] [data-class] option").count() == (kept + 1 if kept else 0)


def test_pages_every_control_clicked_sends_nothing_away(opened: Open, run_page: str, tmp_path: Path) -> None:
    search = report.report([search_folder(tmp_path).run_folder])
    both = report.report([str(Path(run_page).parent)] * 2, storage.join(str(tmp_path), "both.html"))
    for path in (run_page, search, both):
        sends_nothing_away(opened(path), path)


@pytest.mark.parametrize("size", SIZES)
def test_search_page_click_on_a_trial_highlights_it(opened: Open, tmp_path: Path, size: str) -> None:
    page = opened(report.report([search_folder(tmp_path).run_folder]), size, "dark")
    looks_right(page, size, "dark")
    assert page.locator("[data-line]").count() == 6
    page.click("[data-trial='3']")
    assert page.locator("[data-line='3']").get_attribute("stroke-width") == "4"
    assert page.locator("tr.picked").get_attribute("data-trial") == "3"
    page.select_option("#key", "1")
    assert page.evaluate("document.querySelector('[data-chart=slice]').layout.xaxis.type") == "category"


def test_comparison_page_draws_one_curve_per_run(opened: Open, run_page: str, tmp_path: Path) -> None:
    folder = str(Path(run_page).parent)
    page = opened(report.report([folder, folder], storage.join(str(tmp_path), "both.html")), "phone")
    looks_right(page, "phone", "light")
    assert page.evaluate("document.querySelector('[data-chart=valid_loss]').data.length") == 2
    assert "same accuracy" in str(page.locator("#verdict .big").text_content())
