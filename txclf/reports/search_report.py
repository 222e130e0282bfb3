"""What the page of a search says, and that of several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from txclf.artifacts import trials
from txclf.artifacts.run_folder import RunState
from txclf.config import run_config
from txclf.config.dotted import flatten_dotted
from txclf.core import storage
from txclf.evaluation import evaluate
from txclf.reports.run_report import curves, facts, plain

ORDER = ("running", "finished", "stopped", "failed", "waiting")


def gather(folder: str) -> dict[str, Any]:
    """All that the page of a search shows, finished or not."""
    folder = storage.absolute(folder)
    run = run_config.load(storage.join(folder, "run.yaml"))
    path = storage.join(folder, "search.json")
    search = dict(storage.read_json(path)) if storage.exists(path) else None
    monitor = trials.metric(run)
    results = trials.ranked([trials.result(folder, trial, monitor) for trial in trials.read(folder)], monitor)
    states = [one.trial.state for one in results]
    importance = search["importance"] if search else trials.importance(run, results)
    table = [
        {
            "number": one.trial.number,
            "state": one.trial.state,
            "settings": [one.trial.settings.get(key) for key in run.tune.space],
            "best": None if math.isnan(one.best) else one.best,
            "best_epoch": one.best_epoch,
            "epochs": one.epochs,
            "seconds": one.trial.seconds,
            "reason": one.trial.reason,
            "history": _history(folder, one.trial.number, monitor),
        }
        for one in results
    ]
    best = next((one for one in table if one["best"] is not None), None)
    found: list[tuple[str, Any]] = [
        ("trials", ", ".join(f"{states.count(state)} {state}" for state in ORDER if state in states) or "none yet"),
        ("compared by", monitor),
        ("scheduler", run.tune.scheduler.kind),
        ("settings from", run.tune.search),
    ]
    if search:
        share = search["epochs"] / max(1e-9, search["epochs_to_the_end"])
        found += [
            ("epochs", f"{search['epochs']:,.1f} of {search['epochs_to_the_end']:,.0f} ({share:.0%})"),
            ("time", f"{search['seconds']:,.0f} s"),
            ("made by txclf", search["version"]),
        ]
    return {
        "kind": "search",
        "name": run.name,
        "folder": folder,
        "finished": search is not None,
        "notes": [] if search else ["The search is not finished: this is how it stands."],
        "metric": monitor,
        "lower": monitor == "valid_loss",
        "keys": list(run.tune.space),
        "log_keys": [key for key, domain in run.tune.space.items() if domain.loguniform],
        "trials": table,
        "best": best,
        "importance": sorted(importance.items(), key=lambda item: -item[1]),
        "facts": found,
        "run_file": run_config.dump(run),
    }


def _history(folder: str, number: int, monitor: str) -> list[list[float]]:
    """(epoch, value) of each validation of a trial."""
    return [[line["epoch"], line[monitor]] for line in trials.validations(folder, number) if monitor in line]


def compare(standings: Sequence[RunState]) -> dict[str, Any]:
    """What several runs share and where they differ; their names are those of their folders, told apart if need be."""
    names = [standing.run.name for standing in standings]
    if len(set(names)) < len(names):
        names = ["/".join(standing.folder.split("/")[-2:]) for standing in standings]
    if len(set(names)) < len(names):
        names = [standing.folder for standing in standings]
    settings = [
        flatten_dotted(standing.run.model_dump(mode="json", exclude={"name", "storage"})) for standing in standings
    ]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    runs = [_brief(standing, name) for standing, name in zip(standings, names, strict=True)]
    shown = [key for key in runs[0]["metrics"] if all(key in one["metrics"] for one in runs)]
    extra = list(dict.fromkeys(key for one in runs for key in one["metrics"] if key not in shown))
    data = {standing.manifest.fingerprint if standing.manifest else "?" for standing in standings}
    return {
        "kind": "comparison",
        "name": " · ".join(names),
        "runs": runs,
        "metrics": [*shown, *extra],
        "differing": [(key, [plain(one[key]) if key in one else "–" for one in settings]) for key in differing],
        "notes": ["The runs did not learn from the same prepared data: their validation rows may differ."]
        if len(data) > 1
        else [],
    }


def _brief(standing: RunState, name: str) -> dict[str, Any]:
    summary = standing.summary
    best = summary["best"] if summary else standing.best or {}
    metrics = {key: value for key, value in best.items() if key.startswith("valid_") and key != "valid_rows"}
    path = storage.join(standing.folder, evaluate.METRICS)
    if storage.exists(path):
        tested = storage.read_json(path)
        where = "test" if tested["data"] == "test" else "files"
        for key in ("accuracy", "f1_macro", "calibration_error", "bleu", "chrf"):
            if isinstance(tested.get(key), float):
                metrics[f"{where}_{key}"] = tested[key]
        if "baseline" in tested:
            key = "accuracy" if "accuracy" in tested["baseline"] else "f1_macro"  # of several labels a row
            metrics[f"{where}_{key} of the n-gram baseline"] = tested["baseline"][key]
    if summary:
        metrics |= {"tokens_per_second": summary["tokens_per_second"], "seconds": summary["seconds"]["total"]}
    return {
        "name": name,
        "folder": standing.folder,
        "finished": summary is not None,
        "facts": facts(standing),
        "metrics": metrics,
        "curves": curves(standing),
    }
