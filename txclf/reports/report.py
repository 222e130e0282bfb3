"""`txclf report`: write the page of a run or of a search, or a page that compares several runs.

    run folder/report.html        page of a run; also written at the end of training
    search folder/report.html     page of a search
    comparison.html               comparison of several runs, in the working directory

The model card of a finished run, `model/README.md`, is rewritten from the same content. Reports do not need Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from txclf.artifacts import run_folder
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.core.text import message
from txclf.reports import card_report, html, run_report, search_report
from txclf.reports.content import Page, RunPage
from txclf.reports.error_analysis import FULL, QUICK, Budget

FILE = "report.html"
COMPARISON = "comparison.html"


def report(paths: Sequence[str], out: str | None = None, budget: Budget = FULL) -> str:
    """Write the page and return its path. Raises `ConfigError` for a path that is neither a run nor a search."""
    kinds = [run_folder.kind(path) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        _require_reportable(path, kind, is_compared=len(paths) > 1)
    page: Page
    if len(paths) > 1:
        page = search_report.compare([run_folder.read_run(path) for path in paths], budget)
        target = out or COMPARISON
    elif kinds == ["search"]:
        page, target = search_report.gather(paths[0]), out or storage.join(paths[0], FILE)
    else:
        page = run_report.gather(run_folder.read_run(paths[0]), budget)
        target = out or storage.join(paths[0], FILE)
        if not out:
            _write_card(storage.join(paths[0], "model"), page)
    storage.write_bytes(target, html.render(page))
    return target


def _require_reportable(path: str, kind: run_folder.Kind | None, *, is_compared: bool) -> None:
    """Raise `ConfigError` for a path that is no run; a single search is accepted too."""
    if kind not in ("run", "search"):
        what = {"bundle": "a model bundle", "prepared": "prepared data", None: "neither a run nor a search"}[kind]
        raise ConfigError(f"`{path}`: {what}. Pass a folder that `txclf train` or `txclf tune` made.")
    if kind == "search" and is_compared:
        trials = storage.join(path, "trials", "0000")
        raise ConfigError(f"`{path}`: a search cannot be compared with runs. Pass its trials, for example `{trials}`.")


def _write_card(bundle: str, page: RunPage) -> None:
    """Rewrite the model card of a finished run."""
    if page.finished and run_folder.kind(bundle) == "bundle":
        card_report.write(bundle, page)


def after(folder: str) -> str | None:
    """Write the page at the end of a run or a search and return its path. Logs an error as a warning and returns None.

    The budget is small. The page is optional: a failure must not hide the trained model.
    """
    try:
        return report([folder], budget=QUICK)
    except Exception as error:
        reason = message(f"`{folder}`: no report was written: {type(error).__name__}: {error}")
        logging.getLogger("txclf").warning("%s", reason)
        return None
