"""`txclf report`: a page of a run or of a search, or one that compares several runs.

    run folder/report.html        of `txclf report RUN`, and at the end of each run
    search folder/report.html     of a search
    comparison.html               of several runs, in the working directory

The model card of a run, `model/card.md`, is made anew from the same numbers.

It needs no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from txclf.artifacts import run_folder
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.reports import card_report, html, run_report, search_report
from txclf.reports.error_analysis import FULL, QUICK, Budget

FILE = "report.html"
COMPARISON = "comparison.html"


def report(paths: Sequence[str], out: str | None = None, budget: Budget = FULL) -> str:
    """Writes the page and returns where it is. Raises `ConfigError` for what is neither a run nor a search."""
    kinds = [run_folder.kind(path) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        if kind not in ("run", "search"):
            what = {"bundle": "a model bundle", "prepared": "prepared data", None: "neither a run nor a search"}[kind]
            raise ConfigError(f"`{path}`: {what}: name a folder that `txclf train` or `txclf tune` made")
        if kind == "search" and len(paths) > 1:
            trials = storage.join(path, "trials", "0000")
            raise ConfigError(f"`{path}`: a search is not compared with others: name its trials, as `{trials}`")
    if len(paths) > 1:
        content = search_report.compare([run_folder.read_run(path) for path in paths])
        place = out or COMPARISON
    elif kinds == ["search"]:
        content, place = search_report.gather(paths[0]), out or storage.join(paths[0], FILE)
    else:
        content = run_report.gather(run_folder.read_run(paths[0]), budget)
        place = out or storage.join(paths[0], FILE)
        model = storage.join(paths[0], "model")
        if content["finished"] and not out and run_folder.kind(model) == "bundle":
            card_report.write(model, content)
    storage.write_bytes(place, html.render(content))
    return place


def after(folder: str) -> str | None:
    """The page at the end of a run or a search, at little cost. What goes wrong is a warning: the model is there."""
    try:
        return report([folder], budget=QUICK)
    except Exception as error:
        logging.getLogger("txclf").warning("no report of `%s`: %s: %s", folder, type(error).__name__, error)
        return None
