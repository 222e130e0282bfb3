"""`txclf inspect`: what a path is, and what can be done with it.

Raw files are audited without training; prepared data, runs, searches and bundles say what they hold, and how to go on.
The result is plain data, the same for `--json` and for the screen.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from typing import Any

from txclf.artifacts import checkpoints, run_folder, trials
from txclf.artifacts.run_folder import RunState
from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import DataError, TxclfError
from txclf.data import profile, shards, sources
from txclf.evaluation import evaluate
from txclf.inference import bundle


def inspect(path: str, text: Sequence[str] = (), label: str | None = None) -> dict[str, Any]:
    """What a path is: `kind` and what belongs to it. Raises `DataError` for what is none of them."""
    kind = run_folder.kind(path)
    readers = {"run": _run, "search": _search, "bundle": _bundle, "prepared": _prepared}
    if kind:
        return {"kind": kind, "path": storage.absolute(path), **readers[kind](path)}
    if runs := _runs_in(path):
        names = ", ".join(f"`{storage.join(path, name)}`" for name in runs[:5])
        raise DataError(f"`{path}`: a folder of {len(runs)} run(s): name one of them, as {names}")
    try:
        files = sources.find_sources([path])
    except TxclfError as error:
        what = "raw data, prepared data, a run, a search or a model bundle"
        raise DataError(f"{error}\nexpected {what}") from None
    return profile.audit(path, files, text, label)


def _runs_in(path: str) -> list[str]:
    if not storage.is_folder(path):
        return []
    return [name for name in storage.list_folder(path) if storage.exists(storage.join(path, name, "run.yaml"))]


def _run(path: str) -> dict[str, Any]:
    standing = run_folder.read_run(path)
    run, summary, best = standing.run, standing.summary, standing.best
    total = _total_steps(standing)
    quoted, file = shlex.quote(standing.folder), shlex.quote(storage.join(standing.folder, "run.yaml"))
    tested = storage.join(standing.folder, evaluate.METRICS)
    found: dict[str, Any] = {
        "name": run.name,
        "task": run.task,
        "state": "finished" if summary else "begun" if standing.log else "not begun",
        "step": summary["steps"] if summary else standing.step,
        "total_steps": total,
        "epoch": round(summary["epochs"] if summary else standing.epochs, 4),
        "epochs": run.train.epochs,
        "monitor": run.train.monitor,
        "best": {key: value for key, value in best.items() if key != "valid_rows"} if best else None,
        "attempts": standing.attempts,
        "checkpoints": [one.step for one in checkpoints.committed(storage.join(standing.folder, "checkpoints"))],
        "prepared": standing.prepared,
    }
    if summary:
        found["stopped_early"] = summary["stopped_early"]
        if storage.exists(tested):
            scores = storage.read_json(tested)
            found["test"] = {
                key: scores[key] for key in ("data", "rows", "accuracy", "f1_macro", "bleu") if key in scores
            }
        model = shlex.quote(storage.join(standing.folder, "model"))
        found["next"] = [f"txclf report {quoted}", f"txclf predict {model} INPUT --out predictions.csv"]
        found["next"] += [f"txclf evaluate {quoted}"] if run.data.test and "test" not in found else []
    else:
        ago = _seconds_ago(storage.join(standing.folder, "metrics.jsonl"))
        found["seconds_since_last_line"] = ago
        found["next"] = [f"txclf train {file} --resume", f"txclf report {quoted}"]
    return found


def _total_steps(standing: RunState) -> int | None:
    """Steps of the whole run; None without its data."""
    if not standing.manifest:
        return None
    splits, train = standing.manifest.splits, standing.run.train
    rows = splits["train"].rows + (splits["valid"].rows if train.train_on_valid else 0)
    return rows // train.batch_size * train.epochs


def _seconds_ago(path: str) -> float | None:
    """Since a file was written: a run that still trains writes often."""
    written = storage.modified(path)
    return None if written is None else round(max(0.0, time.time() - written), 1)


def _search(path: str) -> dict[str, Any]:
    folder = storage.absolute(path)
    run = run_config.load(storage.join(folder, "run.yaml"))
    monitor = trials.metric(run)
    results = trials.ranked([trials.result(folder, trial, monitor) for trial in trials.read(folder)], monitor)
    states = [one.trial.state for one in results]
    summary = storage.join(folder, "search.json")
    finished = storage.exists(summary)
    best = results[0] if results and not math.isnan(results[0].best) else None
    file = shlex.quote(storage.join(folder, "run.yaml"))
    commands = [f"txclf report {shlex.quote(folder)}"]
    commands.insert(0, f"txclf tune {file} --extend 8" if finished else f"txclf tune {file} --resume")
    return {
        "name": run.name,
        "task": run.task,
        "state": "finished" if finished else "not finished",
        "metric": monitor,
        "trials": run.tune.total,
        "states": {state: states.count(state) for state in sorted(set(states))},
        "best": {
            "trial": best.trial.number,
            monitor: best.best,
            "epoch": best.best_epoch,
            "settings": best.trial.settings,
        }
        if best
        else None,
        "importance": storage.read_json(summary)["importance"] if finished else {},
        "next": commands,
    }


def _bundle(path: str) -> dict[str, Any]:
    found = bundle.read_metadata(path)
    quoted = shlex.quote(path)
    return {
        "task": found.task,
        "version": found.version,
        "labels": len(found.labels),
        "label_names": found.labels,
        "text": found.text_columns,
        "max_length": found.max_length,
        "vocab_size": found.vocab_size,
        "model": found.model.model_dump(mode="json"),
        "metrics": found.metrics,
        "rows": found.rows,
        "temperature": found.calibration.temperature if found.calibration else None,
        "next": [f"txclf predict {quoted} INPUT --out predictions.csv"],
    }


def _prepared(path: str) -> dict[str, Any]:
    manifest = shards.load_manifest(path)
    columns = ["rows", "rejected", "tokens", "truncated_rows", "truncated_token_share", "duplicates"]
    columns += ["duplicates_of_train"]
    return {
        "fingerprint": manifest.fingerprint,
        "labels": len(manifest.labels),
        "vocab_size": manifest.vocab_size,
        "max_length": manifest.max_length,
        "conflicting_texts": manifest.conflicting_texts,
        "splits": [
            {"split": name, **{column: getattr(split, column) for column in columns}}
            for name, split in manifest.splits.items()
        ],
        "label_rows": [
            {"label": label, **{name: split.label_counts.get(label, 0) for name, split in manifest.splits.items()}}
            for label in manifest.labels
        ],
        "bad_reasons": [{"reason": reason, "rows": rows} for reason, rows in manifest.reject_reasons.items()],
        "next": ["txclf train RUN.yaml: a run file with the same data, tokenizer and seed finds these"],
    }
