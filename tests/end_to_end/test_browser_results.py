"""Pages of drift, a learning curve and an audit in a real browser, with hostile texts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import txclf
from tests.helpers.browsing import SIZES, Open, looks_right, sends_nothing_away
from tests.helpers.reports import HOSTILE, hostile_run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the paths of the pages of one run, by the id of their first chart."""
    run = hostile_run(tmp_path_factory.mktemp("results"))
    texts = [f"{HOSTILE[0]} overdue invoice {number}" for number in range(200)]
    txclf.drift(run.run_folder, pa.table({"text": texts}))
    txclf.curve(run.run_folder, points=2)
    audit = txclf.audit(run.run_folder, folds=2)
    folder = run.run_folder
    return {
        "drift": f"{folder}/drift.html",
        "curve": f"{folder}/curve/curve.html",
        "audit": str(Path(audit["rows_file"]).with_name("audit.html")),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["drift", "curve", "audit"])
def test_result_page_any_size_and_scheme_looks_right(
    opened: Open, pages: dict[str, str], name: str, size: str, scheme: str
) -> None:
    page = opened(pages[name], size, scheme)
    looks_right(page, size, scheme)
    assert page.locator("[data-chart] svg").count() > 0
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("name", ["drift", "curve", "audit"])
def test_result_page_every_control_clicked_sends_nothing_away(opened: Open, pages: dict[str, str], name: str) -> None:
    sends_nothing_away(opened(pages[name]), pages[name])
