"""What the page of a run says: plain values for the tables, and numbers for the charts."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

from txclf.artifacts.run_folder import RunState
from txclf.config import run_config
from txclf.config.dotted import flatten_dotted
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import TxclfError
from txclf.data import shards
from txclf.evaluation import evaluate
from txclf.inference.bundle import read_metadata
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq
from txclf.reports import error_analysis
from txclf.reports.error_analysis import Budget

CURVE_POINTS = 2_000
"""Of a learning curve; of a longer one every so many lines are left out."""
TITLES = {
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "f1_minority": "F1 of the rarest class",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall",
    "loss": "loss",
    "mcc": "Matthews correlation",
    "auroc_macro": "AUROC (macro)",
    "calibration_error": "calibration error",
    "f1_micro": "micro F1",
    "map": "mean average precision",
    "subset_accuracy": "rows with all labels right",
    "token_accuracy": "token accuracy",
    "exact_match": "exact match",
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "chrf": "chrF",
}
PACKAGES = ("txclf", "torch", "pytorch-lightning", "ray", "tokenizers", "numpy", "pyarrow", "scikit-learn")

Values = list[tuple[str, Any]]


def gather(standing: RunState, budget: Budget) -> dict[str, Any]:
    """All that the page of a run shows. Scores the validation rows, and the test rows where they were evaluated."""
    run, summary = standing.run, standing.summary
    notes: list[str] = []
    tested = _tested(standing)
    splits = _splits(standing, tested, budget, notes) if summary and standing.manifest else []
    if not summary:
        notes.append(f"The run is not finished: it is at epoch {standing.epochs:.2f} of {run.train.epochs}.")
    if not standing.manifest:
        notes.append("The prepared data are not there any more: nothing could be scored, and there is no audit.")
    headline = _headline(standing, splits, tested)
    return {
        "kind": "run",
        "name": run.name,
        "folder": standing.folder,
        "task": run.task,
        "labels": len(standing.manifest.labels) if standing.manifest else 0,
        "finished": summary is not None,
        "notes": notes,
        "headline": headline,
        "facts": facts(standing),
        "splits": splits,
        "curves": curves(standing),
        "data": _data(standing.manifest) if standing.manifest else None,
        "efficiency": efficiency(summary) if summary else [],
        "seconds": _seconds(summary) if summary else [],
        "run_file": run_config.dump(run),
        "changed": changed(run),
        "reproduce": _reproduce(standing),
    }


def curves(standing: RunState) -> dict[str, Any]:
    """The log by what it has: lists of (step, epoch, value)."""
    found: dict[str, list[list[float]]] = {}
    for line in standing.log:
        for name, value in line.items():
            if name not in ("step", "epoch", "valid_rows") and value is not None:
                found.setdefault(name, []).append([line["step"], line["epoch"], value])
    thinned = {name: points[:: -(-len(points) // CURVE_POINTS)] for name, points in found.items()}
    best = standing.best
    return {"points": thinned, "best_step": int(best["step"]) if best else None, "monitor": standing.run.train.monitor}


def facts(standing: RunState) -> Values:
    """The first lines of a run."""
    run, summary, manifest = standing.run, standing.summary, standing.manifest
    model = run.model
    found: Values = [("task", run.task)]
    if manifest:
        rows = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())
        found += [("rows", rows)]
        found += [("labels", f"{len(manifest.labels):,}")] if run.task != "seq2seq" else []
        found += [("vocabulary", f"{manifest.vocab_size:,} tokens, {run.tokenizer.kind}")]
    found += [
        (
            "model",
            f"{model.num_layers} x {model.hidden_size}, {model.num_heads} heads",
        )
    ]
    if summary:
        early = ", stopped early" if summary["stopped_early"] else ""
        found += [
            ("parameters", f"{summary['parameters']:,}"),
            ("trained", f"{summary['epochs']:.2f} epochs, {summary['steps']:,} steps{early}"),
            ("best at step", f"{summary['best_step']:,}"),
            ("time", f"{summary['seconds']['total']:,.0f} s"),
            ("on", f"{_place(summary['workers'])}, {summary['device']}, {summary['precision']}"),
        ]
    return found


def _tested(standing: RunState) -> dict[str, Any] | None:
    """What `txclf evaluate` found, on whatever rows."""
    path = storage.join(standing.folder, evaluate.METRICS)
    return dict(storage.read_json(path)) if storage.exists(path) else None


def _splits(
    standing: RunState, tested: dict[str, Any] | None, budget: Budget, notes: list[str]
) -> list[dict[str, Any]]:
    """The test rows first, where the run was evaluated on them; the validation rows unless it learned from them."""
    manifest, run = standing.manifest, standing.run
    assert manifest
    assert standing.prepared
    wanted = [("test", "Test")] if tested and tested["data"] == "test" and "test" in manifest.splits else []
    if run.train.train_on_valid:
        notes.append("The validation rows were learned from, so they say nothing about the model.")
    else:
        wanted.append(("valid", "Validation"))
    folder = storage.join(standing.folder, "model")
    found = []
    try:
        if read_metadata(folder).task == "seq2seq":
            model = Seq2Seq.load(folder)
            for split, title in wanted:
                made = error_analysis.examples(model, standing.prepared, manifest, split)
                known = tested if split == "test" else standing.summary and standing.summary["best"]
                found.append({"id": split, "title": title, **made, "metrics": _named(known or {})})
            return found
        classifier = Classifier.load(folder)
        for split, title in wanted:
            scored = error_analysis.score(classifier, standing.prepared, manifest, split, budget)
            one = error_analysis.details(scored, classifier)
            given = tested if tested and split == "test" else {}
            if split == "valid" and tested is None and not classifier.is_multilabel:
                lowercase = run.tokenizer.lowercase
                given = error_analysis.baselines(scored, standing.prepared, manifest, lowercase, budget)
            compared = {name: given[name] for name in ("baseline", "majority") if name in given}
            found.append({"id": split, "title": title, **one, "compared": compared, "named": _named(one["metrics"])})
    except TxclfError as error:
        notes.append(f"Nothing could be scored: {error}")
    return found


def _named(metrics: Mapping[str, Any]) -> Values:
    """Numbers that have a title, with it."""
    plain = {name.removeprefix("valid_"): value for name, value in metrics.items()}
    return [(title, plain[name]) for name, title in TITLES.items() if isinstance(plain.get(name), int | float)]


def _headline(standing: RunState, splits: list[dict[str, Any]], tested: dict[str, Any] | None) -> dict[str, Any] | None:
    """The metric that the run was chosen by (accuracy for a loss), with the baselines beside it."""
    if standing.run.task == "seq2seq":
        values = _named((tested if tested else standing.best) or {})
        where = "test" if tested and tested["data"] == "test" else "the files given" if tested else "validation"
        order = ["BLEU", "exact match", "token accuracy"]
        first = next(((name, value) for name in order for title, value in values if title == name), None)
        return first and {"title": first[0], "value": first[1], "where": where, "rows": None, "bars": []}
    several = standing.run.task == "multilabel"
    metric = "f1_macro" if several or standing.run.train.monitor == "valid_f1_macro" else "accuracy"
    if several and tested:
        value, where = tested[metric], "test" if tested["data"] == "test" else "the files given"
        names = {"baseline": "n-gram logistic regression", "majority": "commonest labels"}
        bars = [("this model", value), *((names[key], tested[key][metric]) for key in names if key in tested)]
        return {
            "title": TITLES[metric],
            "value": value,
            "where": where,
            "rows": tested["rows"],
            "bars": [{"title": title, "value": one} for title, one in bars],
            "beats": value > tested["baseline"][metric] if "baseline" in tested else None,
            "note": "",
        }
    if splits and "compared" in splits[0]:
        first_split = splits[0]
        value, compared = first_split["metrics"][metric], first_split["compared"]
        names = {"baseline": "n-gram logistic regression", "majority": "majority class"}
        bars = [("this model", value), *((names[key], compared[key][metric]) for key in names if key in compared)]
        linear = compared.get("baseline", {})
        fewer = linear.get("train_rows", 0) < linear.get("of_train_rows", 0)
        return {
            "title": TITLES[metric],
            "value": value,
            "where": first_split["title"].lower(),
            "rows": first_split["rows"],
            "bars": [{"title": title, "value": one} for title, one in bars],
            "beats": value > linear[metric] if linear else None,
            "note": f"The regression learned from {linear['train_rows']:,} of {linear['of_train_rows']:,} training rows"
            if fewer
            else "",
        }
    best = standing.best or {}
    found = best.get(f"valid_{metric}")
    if found is None:
        return None
    return {"title": TITLES[metric], "value": found, "where": "validation", "rows": None, "bars": []}


def _data(manifest: shards.Manifest) -> dict[str, Any]:
    """The audit."""
    names = ["rows", "rejected", "tokens", "truncated_rows", "truncated_token_share", "duplicates"]
    names += ["duplicates_of_train"]
    counts = {name: split.label_counts for name, split in manifest.splits.items()}
    return {
        "splits": [
            {"name": name, **{key: getattr(split, key) for key in names}} for name, split in manifest.splits.items()
        ],
        "reasons": sorted(manifest.reject_reasons.items(), key=lambda item: -item[1]),
        "conflicts": manifest.conflicting_texts,
        "labels": [
            {"label": label, **{name: counts[name].get(label, 0) for name in counts}} for label in manifest.labels
        ],
        "edges": manifest.length_edges,
        "max_length": manifest.max_length,
        "lengths": {name: split.length_histogram for name, split in manifest.splits.items()},
    }


def efficiency(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and what it means."""
    seconds = summary["seconds"]
    total = max(seconds["total"], 1e-9)
    found = [
        ("tokens a second", f"{summary['tokens_per_second']:,.0f}", "real tokens over the time of steps and data"),
        ("padding", f"{summary['padding_share']:.1%}", "of the positions of a batch that hold no token"),
        ("waiting for data", f"{summary['data_share']:.1%}", "of the time of steps and data"),
        ("in steps", f"{seconds['steps'] / total:.1%}", "of all the time of the last attempt"),
        ("attempts", f"{summary['attempts']:,}", f"{summary['steps_repeated']:,} steps trained twice"),
        ("steps skipped", f"{summary['steps_skipped']:,}", "their gradient was not finite"),
    ]
    if isinstance(summary.get("mfu"), int | float):
        found.insert(
            1, ("MFU", f"{summary['mfu']:.1%}", "of the rate of large matrix products, measured on this device")
        )
    return found


def _seconds(summary: Mapping[str, Any]) -> Values:
    """Where the time of the last attempt went; what is in none of the parts is `other`."""
    parts = {name: value for name, value in summary["seconds"].items() if name != "total"}
    rest = max(0.0, summary["seconds"]["total"] - sum(parts.values()))
    return [*parts.items(), ("other", rest)]


def changed(run: RunConfig) -> list[tuple[str, str, str]]:
    """Keys whose value is not the default, with both."""
    mine, usual = (flatten_dotted(config.model_dump(mode="json")) for config in (run, RunConfig()))
    keys = [key for key in mine if key not in usual or mine[key] != usual[key]]
    return [(key, plain(mine[key]), plain(usual[key]) if key in usual else "") for key in keys]


def plain(value: Any) -> str:
    """A setting as YAML has it, on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _reproduce(standing: RunState) -> dict[str, Any]:
    """The commands, and what the result follows from."""
    folder, summary = standing.folder, standing.summary
    file = shlex.quote(storage.join(folder, "run.yaml"))
    commands = [f"txclf train {file} name={standing.run.name}-again"]
    commands += [f"txclf evaluate {shlex.quote(folder)}"] if standing.run.data.test else []
    facts: Values = [("seed", standing.run.seed)]
    facts += [("made by txclf", summary["version"])] if summary else []
    if standing.manifest:
        facts += [("fingerprint of the data", standing.manifest.fingerprint)]
        facts += [("hash of the tokenizer", standing.manifest.tokenizer_hash)]
    with suppress(TxclfError):  # there is no bundle yet
        hashes = read_metadata(storage.join(folder, "model")).sha256
        facts += [(f"SHA-256 of {name}", value) for name, value in hashes.items()]
    return {"commands": commands, "facts": facts, "here": here()}


def here() -> Values:
    """What this page was made with: the versions of this machine, which may not be those of the workers."""
    packages = [(name, metadata.version(name)) for name in PACKAGES]
    return [("Python", platform.python_version()), ("platform", platform.platform()), *packages]


def _place(workers: int) -> str:
    """Where a run trained; 0 workers are the process of the command."""
    return {0: "this process", 1: "1 worker"}.get(workers, f"{workers} workers")
