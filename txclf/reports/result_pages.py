"""Results of `txclf drift` and `txclf curve` with their pages, next to their JSON.

run folder/drift.html          new texts against those of the run
run folder/curve/curve.html    scores by training rows, and their forecast
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from txclf.core import storage
from txclf.evaluation import learning_curve
from txclf.evaluation.drift import Drift
from txclf.evaluation.drift import drift as compare
from txclf.evaluation.learning_curve import Curve, Plan
from txclf.reports import html
from txclf.reports.content import ResultPage

DRIFT_PAGE, CURVE_PAGE = "drift.html", storage.join(learning_curve.FOLDER, "curve.html")


def drift(run_folder: str, data: Any, *, encoding: str | None = None, delimiter: str | None = None) -> Drift:
    """Compare new texts with the rows of a run as `evaluation.drift.drift` does, and write the page of the result."""
    found = compare(run_folder, data, encoding=encoding, delimiter=delimiter)
    _write(run_folder, DRIFT_PAGE, "drift", found)
    return found


def curve(planned: Plan) -> Curve:
    """Score the runs of a plan as `learning_curve.result` does, and write the page of the result."""
    found = learning_curve.result(planned)
    _write(planned.run.run_folder, CURVE_PAGE, "learning_curve", found)
    return found


def _write(run_folder: str, name: str, kind: Literal["drift", "learning_curve"], result: Mapping[str, Any]) -> None:
    folder = storage.absolute(run_folder)
    page = ResultPage(name=folder.rstrip("/").rsplit("/", 1)[-1], folder=folder, result=result, kind=kind)
    storage.write_bytes(storage.join(folder, name), html.render(page))
