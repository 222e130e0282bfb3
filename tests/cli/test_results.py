"""Commands that describe results: report, inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from txclf.cli import results
from txclf.cli.main import app


def test_inspect_raw_files_prints_tables_and_a_run_file(folder: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", f"{folder}/train.csv"])
    assert done.exit_code == 0, done.output
    assert f"raw data: {folder}/train.csv" in done.stdout
    assert "a run file for it:\n" in done.stdout
    described = json.loads(CliRunner().invoke(app, ["inspect", f"{folder}/train.csv", "--json"]).stdout)
    assert described["kind"] == "data"
    assert described["suggested"]["data"]["train"]


def test_print_description_shortens_long_tables(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"some_label": f"label {number:02d}", "rows": 1000 + number} for number in range(33)]
    results.print_description({"kind": "prepared", "path": "/data", "labels": rows, "empty": [], "share": 0.123456})
    shown = capsys.readouterr().out
    assert "prepared data: /data" in shown
    assert "labels (3 more with --json)" in shown
    assert "some label" in shown
    assert "1,029" in shown
    assert "label 30" not in shown
    assert "0.1235" in shown
    assert "empty" not in shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "yes"),
        (None, ""),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (123456.7, "123,457"),
        ({"a": 1, "b": None, "c": "d"}, "a 1, c d"),
        (list(range(31)), ", ".join(map(str, range(30))) + " and 1 more"),
    ],
)
def test_format_values_are_short_text(value: object, expected: str) -> None:
    assert results._format(value) == expected
