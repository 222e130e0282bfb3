"""Pages of a search and of a comparison of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from txclf.artifacts import trials
from txclf.artifacts.run_folder import RunState
from txclf.artifacts.trials import Result
from txclf.config import run_config
from txclf.config.base import direction
from txclf.config.dotted import flatten_dotted
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.reports import paired, run_scores
from txclf.reports.content import ComparedRun, ComparisonPage, Fact, SearchPage, TrialRow
from txclf.reports.error_analysis import Budget
from txclf.reports.run_report import curves, facts, plain

PAGE = "report.html"
"""Page of a run in its folder."""
STATES = ("running", "finished", "stopped", "failed", "waiting")
"""States of trials, in the order in which a page counts them."""


def gather(folder: str) -> SearchPage:
    """Return the page of a search, finished or not."""
    folder = storage.absolute(folder)
    run = run_config.load(storage.join(folder, "run.yaml"))
    path = storage.join(folder, "search.json")
    summary = storage.read_object(path, "importance") if storage.exists(path) else None
    metric = trials.metric(run)
    results = trials.all_ranked(folder, metric)
    importance = summary["importance"] if summary else trials.importance(run, results)
    rows = [_trial_row(run, folder, result) for result in results]
    return SearchPage(
        name=run.name,
        folder=folder,
        finished=summary is not None,
        notes=[] if summary else ["The search is not finished. This page shows its current state."],
        metric=metric,
        lower=direction(metric) == "min",
        keys=list(run.tune.space),
        log_keys=[key for key, domain in run.tune.space.items() if domain.loguniform],
        trials=rows,
        best=next((row for row in rows if row.best is not None), None),
        importance=sorted(importance.items(), key=lambda item: -item[1]),
        facts=_facts(run, results, summary),
        run_file=run_config.dump(run),
    )


def _trial_row(run: RunConfig, folder: str, result: Result) -> TrialRow:
    """Return a trial with the values of all its validations."""
    trial, metric = result.trial, trials.metric(run)
    page = storage.join(trials.FOLDER, f"{trial.number:04d}", PAGE)
    return TrialRow(
        number=trial.number,
        state=trial.state,
        settings=[trial.settings.get(key) for key in run.tune.space],
        page=page if storage.exists(storage.join(folder, page)) else "",
        best=None if math.isnan(result.best) else result.best,
        best_epoch=result.best_epoch,
        epochs=result.epochs,
        seconds=trial.seconds,
        reason=trial.reason,
        history=[[line["epoch"], line[metric]] for line in trials.validations(folder, trial.number) if metric in line],
    )


def _facts(run: RunConfig, results: Sequence[Result], summary: dict[str, Any] | None) -> list[Fact]:
    """Return the facts at the top of a search's page."""
    states = [result.trial.state for result in results]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    lines = [
        Fact("trials", counts or "none yet"),
        Fact("metric", trials.metric(run)),
        Fact("scheduler", run.tune.scheduler.kind),
        Fact("search method", run.tune.search),
    ]
    if summary:
        share = summary["epochs"] / max(1e-9, summary["epochs_to_the_end"])
        epochs = f"{summary['epochs']:,.1f} of {summary['epochs_to_the_end']:,.0f} ({share:.0%})"
        lines += [
            Fact("epochs", epochs),
            Fact("time", f"{summary['seconds']:,.0f} s"),
            Fact("txclf version", summary["version"]),
        ]
    return lines


def compare(states: Sequence[RunState], budget: Budget) -> ComparisonPage:
    """Return the page that compares several runs."""
    names = _distinct_names(states)
    settings = [flatten_dotted(state.run.model_dump(mode="json", exclude={"name", "storage"})) for state in states]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    differing = [key for key in keys if len({repr(values.get(key)) for values in settings}) > 1]
    runs = [_compared_run(state, name) for state, name in zip(states, names, strict=True)]
    in_all = [key for key in runs[0].metrics if all(key in run.metrics for run in runs)]
    in_some = list(dict.fromkeys(key for run in runs for key in run.metrics if key not in in_all))
    data = {state.manifest.fingerprint if state.manifest else "?" for state in states}
    notes = ["The runs used different prepared data. Their validation rows may differ."] if len(data) > 1 else []
    same_rows = paired.paired(states, names, budget, notes)
    return ComparisonPage(
        name=" · ".join(names),
        paired=same_rows,
        runs=runs,
        metrics=[*in_all, *in_some],
        differing=[(key, [plain(values[key]) if key in values else "–" for values in settings]) for key in differing],
        notes=notes,
    )


def _distinct_names(states: Sequence[RunState]) -> list[str]:
    """Return the names of runs; the end of their paths, or the full paths, where names repeat."""
    for names in (
        [state.run.name for state in states],
        ["/".join(state.folder.split("/")[-2:]) for state in states],
    ):
        if len(set(names)) == len(names):
            return names
    return [state.folder for state in states]


def _compared_run(state: RunState, name: str) -> ComparedRun:
    """Return a run under the name that the comparison shows."""
    return ComparedRun(
        name=name,
        folder=state.folder,
        finished=state.summary is not None,
        facts=facts(state),
        metrics=_compared_metrics(state),
        curves=curves(state),
    )


def _compared_metrics(state: RunState) -> dict[str, float]:
    """Return the best validation, the scores of `txclf evaluate` and the speed of a run."""
    summary = state.summary
    metrics = dict(state.scores)
    tested = run_scores.evaluation(state)
    if tested:
        where = "test" if tested["data"] == "test" else "files"
        for key in ("accuracy", "f1_macro", "calibration_error", "bleu", "chrf"):
            if isinstance(tested.get(key), float):
                metrics[f"{where}_{key}"] = tested[key]
        if "baseline" in tested:
            key = "accuracy" if "accuracy" in tested["baseline"] else "f1_macro"  # multilabel has no accuracy
            metrics[f"{where}_{key} of the n-gram baseline"] = tested["baseline"][key]
    if summary:
        metrics |= {"tokens_per_second": summary["tokens_per_second"], "seconds": summary["seconds"]["total"]}
    return metrics
