"""Pages of drift and of an audit: their figures, and text from the data stays text."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest

import txclf
from tests.helpers.reports import HOSTILE, ReportPage
from txclf.config.run_config import RunConfig
from txclf.evaluation import learning_curve
from txclf.reports import result_pages


def test_drift_writes_a_page_with_the_rows_most_unlike_known_ones(run: RunConfig) -> None:
    texts = [f"{HOSTILE[0]} overdue invoice {number}" for number in range(200)]
    found = txclf.drift(run.run_folder, pa.table({"text": texts}))
    page = ReportPage(f"{run.run_folder}/drift.html")
    result = page.content["result"]
    assert [(label, share) for label, share in result.pop("shares")] == list(found["labels"]["shares"].items())
    assert result == json.loads(Path(run.run_folder, "drift.json").read_text()) == found
    assert all(finding in page.text for finding in found["findings"])
    assert found["findings"]
    assert "overdue" in page.text
    assert sum(row["text"] in page.text for row in found["strangest"]) == len(found["strangest"]) > 0
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert {found.get("data-chart") for _, found in page.tags} > {"shares", "lengths"}
    assert "not finished" not in page.text


def test_curve_of_a_copied_run_writes_into_the_copy(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = str(tmp_path / "copy")
    shutil.copytree(run.run_folder, copy)
    planned = learning_curve.plan(copy, points=1)
    scores = {"accuracy": 0.5, "f1_micro": 0.5, "f1_macro": 0.5, "loss": 1.0}
    monkeypatch.setattr(learning_curve, "EVALUATORS", defaultdict(lambda: lambda evaluation: scores))
    monkeypatch.setattr(learning_curve, "finished", lambda folder: (run, planned.prepared))
    assert result_pages.curve(planned)["run"] == copy
    assert Path(copy, "curve/curve.html").exists()
    assert Path(copy, "curve/curve.json").exists()
    assert not Path(run.run_folder, "curve").exists()


def test_drift_of_rows_that_are_drawn_alike_says_so(run: RunConfig) -> None:
    known = txclf.drift(run.run_folder, run.data.test)
    page = ReportPage(f"{run.run_folder}/drift.html")
    assert known["findings"] == []
    assert "No drift found" in page.text
    assert "Rows most unlike" not in page.text


def test_audit_writes_a_page_with_the_map(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_pages, "MAX_POINTS", 50)
    found = txclf.audit(run.run_folder, folds=2, out=tmp_path)
    page = ReportPage(f"{tmp_path}/audit.html")
    result = page.content["result"]
    assert len(result.pop("map")) == 50
    assert result == json.loads(json.dumps(found))
    assert all(row["text"] in page.text for row in found["most_doubtful"] + found["outliers"])
    assert not any(tag in ("img", "b") for tag, _ in page.tags)
