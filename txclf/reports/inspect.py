"""`txclf inspect`: report the kind of a path, its content and the commands that can follow.

Raw files are audited without training. Of prepared data, runs, searches and bundles it reads the files in the folder.
The result is plain data, the same for `--json` and for the screen.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from txclf.artifacts import checkpoints, run_folder, trials
from txclf.artifacts.run_folder import RunState
from txclf.config import run_config
from txclf.config.recipes import MODEL_KEYS
from txclf.core import storage
from txclf.core.errors import DataError, TxclfError
from txclf.data import detect, profile, sampler, shards, sources
from txclf.inference import bundle
from txclf.reports import run_report, run_scores
from txclf.training.job import WorkerConfig

MAX_LISTED_RUNS = 5
"""Runs that the error about a folder of runs lists."""


def inspect(path: str, text: Sequence[str] = (), label: str | None = None) -> dict[str, Any]:
    """Return the `kind` of a path and what belongs to that kind.

    `text` and `label` name the columns of raw files. Raises `DataError` for a path that is of no kind.
    """
    kind = run_folder.kind(path)
    readers = {"run": _run, "search": _search, "bundle": _bundle, "prepared": _prepared}
    if kind:
        return {"kind": kind, "path": storage.absolute(path), **readers[kind](path)}
    if runs := _runs_in(path):
        names = ", ".join(f"`{storage.join(path, name)}`" for name in runs[:MAX_LISTED_RUNS])
        raise DataError(f"`{path}`: a folder of {len(runs)} run(s). Name one of them: {names}.")
    try:
        files = sources.find_sources([path])
        files = sources.find_sources([path], *detect.of_files(files))
    except TxclfError as error:
        raise DataError(f"{error}\nPass raw data, prepared data, a run, a search or a model bundle.") from None
    return profile.audit(path, files, text, label)


def _runs_in(path: str) -> list[str]:
    """Return the names of the run and search folders in a folder."""
    if not storage.is_folder(path):
        return []
    return [name for name in storage.list_folder(path) if storage.exists(storage.join(path, name, "run.yaml"))]


def _run(path: str) -> dict[str, Any]:
    """Return the progress of a run."""
    state = run_folder.read_run(path)
    summary, best = state.summary, state.best
    return {
        "name": state.run.name,
        "task": state.run.task,
        "state": "finished" if summary else "begun" if state.log else "not begun",
        "step": summary["steps"] if summary else state.step,
        "total_steps": _total_steps(state),
        "epoch": round(summary["epochs"] if summary else state.epochs, 4),
        "epochs": state.run.train.epochs,
        "monitor": state.run.train.monitor,
        "best": {"step": best["step"], "epoch": best["epoch"], **state.scores} if best else None,
        "attempts": state.attempts,
        "checkpoints": [
            checkpoint.step for checkpoint in checkpoints.committed(storage.join(state.folder, "checkpoints"))
        ],
        "prepared": state.prepared,
        **(_finished_run(state, summary) if summary else _unfinished_run(state)),
    }


def _finished_run(state: RunState, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the test scores of a finished run and the commands that can follow."""
    fields: dict[str, Any] = {"stopped_early": summary["stopped_early"]}
    tested = run_scores.evaluation(state)
    if tested:
        fields["test"] = {key: tested[key] for key in ("data", "rows", "accuracy", "f1_macro", "bleu") if key in tested}
    folder, model = shlex.quote(state.folder), shlex.quote(storage.join(state.folder, "model"))
    fields["next"] = [f"txclf report {folder}", f"txclf predict {model} INPUT --out predictions.csv"]
    if state.has_test and not tested:
        fields["next"].append(f"txclf evaluate {folder}")
    return fields


def _unfinished_run(state: RunState) -> dict[str, Any]:
    """Return the age of the last log line and the commands that can follow."""
    folder, file = shlex.quote(state.folder), shlex.quote(storage.join(state.folder, "run.yaml"))
    return {
        "seconds_since_last_line": _seconds_since_write(storage.join(state.folder, "metrics.jsonl")),
        "next": [f"txclf train {file} --resume", f"txclf report {folder}"],
    }


def _total_steps(state: RunState) -> int | None:
    """Return the steps of the whole run; None if its prepared data are gone."""
    if not state.prepared:
        return None
    train, rows = state.run.train, WorkerConfig(state.run, state.prepared).manifest().splits["train"].rows
    return sampler.steps_per_epoch(rows, train.batch_size) * train.epochs


def _seconds_since_write(path: str) -> float | None:
    """Return the age of a file; a run that still trains writes its log often."""
    written = storage.modified(path)
    return None if written is None else round(max(0.0, time.time() - written), 1)


def _search(path: str) -> dict[str, Any]:
    """Return the trials of a search by state, and the best of them."""
    folder = storage.absolute(path)
    run = run_config.load(storage.join(folder, "run.yaml"))
    metric = trials.metric(run)
    results = trials.all_ranked(folder, metric)
    states = [result.trial.state for result in results]
    summary = storage.join(folder, "search.json")
    finished = storage.exists(summary)
    file = shlex.quote(storage.join(folder, "run.yaml"))
    best = None
    if results and not math.isnan(results[0].best):
        best = {
            "trial": results[0].trial.number,
            metric: results[0].best,
            "epoch": results[0].best_epoch,
            "settings": results[0].trial.settings,
        }
    return {
        "name": run.name,
        "task": run.task,
        "state": "finished" if finished else "not finished",
        "metric": metric,
        "trials": run.tune.total,
        "states": {state: states.count(state) for state in sorted(set(states))},
        "best": best,
        "importance": storage.read_object(summary, "importance")["importance"] if finished else {},
        "next": [
            f"txclf tune {file} --extend 8" if finished else f"txclf tune {file} --resume",
            f"txclf report {shlex.quote(folder)}",
        ],
    }


def _bundle(path: str) -> dict[str, Any]:
    """Return the main facts of a bundle's `model.json`."""
    metadata = bundle.read_metadata(path)
    return {
        "task": metadata.task,
        "version": metadata.version,
        "labels": len(metadata.labels),
        "label_names": metadata.labels,
        "text": metadata.text_columns,
        "max_length": metadata.max_length,
        "vocab_size": metadata.vocab_size,
        "model": metadata.model.model_dump(mode="json", include=MODEL_KEYS if metadata.model.pretrained else None),
        "metrics": metadata.metrics,
        "rows": metadata.rows,
        "temperature": metadata.calibration.temperature if metadata.calibration else None,
        "next": [f"txclf predict {shlex.quote(path)} INPUT --out predictions.csv"],
    }


def _prepared(path: str) -> dict[str, Any]:
    """Return the audit of prepared data."""
    manifest = shards.load_manifest(path)
    data = run_report.data_audit(manifest)
    splits = [asdict(split) for split in data.splits]
    return {
        "fingerprint": manifest.fingerprint,
        "labels": len(manifest.labels),
        "vocab_size": manifest.vocab_size,
        "max_length": manifest.max_length,
        "conflicting_texts": manifest.conflicting_texts,
        "corrections": manifest.corrections and manifest.corrections.model_dump(),
        "warnings": manifest.warnings,
        "splits": [{"split": split.pop("name"), **split} for split in splits],
        "label_rows": [{"label": label.label, **label.rows} for label in data.labels],
        "bad_reasons": [{"reason": reason, "rows": rows} for reason, rows in manifest.reject_reasons.items()],
        "next": ["txclf train RUN.yaml  (uses this folder if data, tokenizer, model.pretrained and seed are the same)"],
    }
