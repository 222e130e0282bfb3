"""Results of `txclf drift`, `txclf curve` and `txclf audit` with their pages.

run folder/drift.html          new texts against those of the run
run folder/curve/curve.html    scores by training rows, and their forecast
run folder/audit/audit.html    doubtful labels, and how the rows are learned
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from txclf.auditing.audit import audit as audit_labels
from txclf.core import storage
from txclf.evaluation import learning_curve
from txclf.evaluation.drift import Drift
from txclf.evaluation.drift import drift as compare
from txclf.evaluation.learning_curve import Curve, Plan
from txclf.reports import html
from txclf.reports.content import ResultPage

DRIFT_PAGE, CURVE_PAGE = "drift.html", storage.join(learning_curve.FOLDER, "curve.html")
AUDIT_PAGE = "audit.html"
"""Page in the folder of the audit."""
MAX_POINTS = 3000
"""Rows of an audit that are drawn, a random sample."""


def drift(run_folder: str, data: Any, *, encoding: str | None = None, delimiter: str | None = None) -> Drift:
    """Compare new texts with the rows of a run as `evaluation.drift.drift` does, and write the page of the result."""
    found = compare(run_folder, data, encoding=encoding, delimiter=delimiter)
    # A script lists the keys of an object that are numbers first, and the page shows the most changed labels first.
    content = {**found, "shares": list(found["labels"]["shares"].items())}
    _write(storage.join(run_folder, DRIFT_PAGE), ResultPage(kind="drift", **_of_run(run_folder, content)))
    return found


def curve(planned: Plan) -> Curve:
    """Score the runs of a plan as `learning_curve.result` does, and write the page of the result."""
    found = learning_curve.result(planned)
    _write(storage.join(found["run"], CURVE_PAGE), ResultPage(kind="learning_curve", **_of_run(found["run"], found)))
    return found


def audit(run_folder: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Audit the labels of a run as `auditing.audit.audit` does, with its options, and write the page of the result."""
    found = audit_labels(run_folder, **options)
    content = {**found, "map": _points(found["rows_file"])}
    page = ResultPage(kind="audit", **_of_run(found["run"], content))
    _write(storage.join(storage.folder_of(found["rows_file"]), AUDIT_PAGE), page)
    return found


def _points(path: str) -> list[tuple[float, float, bool, str, str]]:
    """Return (variability, confidence, whether its label is doubtful, label, file and row) of some audited rows."""
    rows = [row for row in csv.DictReader(io.StringIO(storage.read_bytes(path).decode())) if row["confidence"]]
    if len(rows) > MAX_POINTS:
        rows = [rows[i] for i in np.sort(np.random.default_rng(0).choice(len(rows), MAX_POINTS, replace=False))]
    return [
        (
            float(row["variability"]),
            float(row["confidence"]),
            bool(row["kind"]),
            row["label"],
            f"{row['file'].rpartition('/')[2]}:{row['row']}",
        )
        for row in rows
    ]


def _of_run(run_folder: str, result: Mapping[str, Any]) -> dict[str, Any]:
    folder = storage.absolute(run_folder)
    return {"name": folder.rstrip("/").rsplit("/", 1)[-1], "folder": folder, "result": result}


def _write(path: str, page: ResultPage) -> None:
    storage.write_bytes(path, html.render(page))
