"""Dataclasses of the pages: frozen, of one kind each, and valid JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig
from txclf.reports import content, html, run_report, search_report
from txclf.reports.error_analysis import QUICK


def parts() -> list[type]:
    """Return all dataclasses of the module."""
    return [value for value in vars(content).values() if dataclasses.is_dataclass(value) and isinstance(value, type)]


def test_parts_all_dataclasses_are_frozen() -> None:
    assert len(parts()) > 10
    for part in parts():
        assert part.__dataclass_params__.frozen, part.__name__  # type: ignore[attr-defined]


def test_pages_each_has_a_kind_with_a_template() -> None:
    pages = {"run": content.RunPage, "search": content.SearchPage, "comparison": content.ComparisonPage}
    for kind, page in pages.items():
        assert {field.name: field.default for field in dataclasses.fields(page)}["kind"] == kind
        assert (html.ASSETS / f"{kind}.html").is_file()


def test_run_page_is_valid_json_and_keeps_its_values(run: RunConfig) -> None:
    page = run_report.gather(run_folder.read_run(run.run_folder), QUICK)
    values = json.loads(json.dumps(dataclasses.asdict(page)))
    assert values["kind"] == page.kind == "run"
    assert values["splits"][0]["mistakes"][0]["text"] == page.label_splits[0].mistakes[0].text
    assert values["facts"] == [list(fact) for fact in page.facts]
    with pytest.raises(dataclasses.FrozenInstanceError):
        page.name = "another"  # type: ignore[misc]


def test_run_page_label_splits_leave_out_example_splits(run: RunConfig) -> None:
    page = run_report.gather(run_folder.read_run(run.run_folder), QUICK)
    examples = content.ExampleSplit(id="test", title="Test", rows=0, total_rows=0, metrics={}, examples=[])
    mixed = dataclasses.replace(page, splits=[examples, *page.splits])
    assert mixed.label_splits == list(page.splits)


def test_comparison_page_is_valid_json(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    values = json.loads(json.dumps(dataclasses.asdict(search_report.compare([state, state], QUICK))))
    assert values["kind"] == "comparison"
    assert len(values["runs"]) == 2
