"""Page of a run: facts, learning curves, audit of the data, efficiency, settings and how to repeat it."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from typing import Any

from txclf.artifacts.run_folder import RunState
from txclf.config import run_config
from txclf.config.dotted import flatten_dotted
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import TxclfError
from txclf.core.text import distinct
from txclf.data import shards
from txclf.inference.bundle import read_metadata
from txclf.reports import advice, run_scores
from txclf.reports.content import (
    ChangedSetting,
    DataAudit,
    EfficiencyFigure,
    Fact,
    LabelRows,
    LabelSplit,
    LearningCurves,
    Reproduction,
    RunPage,
    SplitAudit,
)
from txclf.reports.error_analysis import Budget

CURVE_POINTS = 2_000
"""Max points of a learning curve; a longer one is thinned to every n-th line."""
PACKAGES = ("txclf", "torch", "pytorch-lightning", "ray", "tokenizers", "numpy", "pyarrow", "scikit-learn")
"""Packages whose versions a page reports."""


def gather(state: RunState, budget: Budget) -> RunPage:
    """Return the page of a run, finished or not. Scores the splits within the budget."""
    run, summary, manifest = state.run, state.summary, state.manifest
    notes: list[str] = []
    tested = run_scores.evaluation(state)
    splits = run_scores.scored_splits(state, tested, budget, notes)
    if not summary:
        notes.append(f"The run is not finished. It is at epoch {state.epochs:.2f} of {run.train.epochs}.")
    if not manifest:
        notes.append("The prepared data are gone. This page has no scores by split and no audit of the data.")
    return RunPage(
        name=run.name,
        folder=state.folder,
        is_multilabel=run.task_spec.is_multilabel,
        is_seq2seq=run.task_spec.is_seq2seq,
        uses_ngrams=run.uses_ngrams,
        num_labels=len(manifest.labels) if manifest else 0,
        finished=summary is not None,
        notes=notes,
        advice=advice.of_run(state, tested) if summary else [],
        headline=run_scores.headline(state, [split for split in splits if isinstance(split, LabelSplit)], tested),
        facts=facts(state),
        splits=splits,
        curves=curves(state),
        data=_shown_labels(data_audit(manifest)) if manifest else None,
        efficiency=efficiency(summary) if summary else [],
        seconds=_seconds(summary) if summary else [],
        run_file=run_config.dump(run),
        changed=changed(run),
        reproduce=_reproduction(state),
    )


def curves(state: RunState) -> LearningCurves:
    """Return the logged values by metric."""
    points: dict[str, list[list[float]]] = {}
    for line in state.log:
        for name, value in line.items():
            if name not in ("step", "epoch", "valid_rows") and value is not None:
                points.setdefault(name, []).append([line["step"], line["epoch"], value])
    thinned = {name: values[:: -(-len(values) // CURVE_POINTS)] for name, values in points.items()}
    best = state.best
    return LearningCurves(thinned, int(best["step"]) if best else None, state.run.train.monitor)


def facts(state: RunState) -> list[Fact]:
    """Return the facts at the top of a run's page: task, data, model and, after training, the result."""
    run, summary, manifest = state.run, state.summary, state.manifest
    model = run.model
    lines = [Fact("task", run.task)]
    if manifest:
        lines.append(Fact("rows", ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())))
        if run.task_spec.has_labels:
            lines.append(Fact("labels", f"{len(manifest.labels):,}"))
        kind = "" if model.pretrained else f", {run.tokenizer.kind}"  # a pretrained model brings its own tokenizer
        lines.append(Fact("vocabulary", f"{manifest.vocab_size:,} tokens{kind}"))
    lines.append(Fact("model", f"{model.num_layers} x {model.hidden_size}, {model.num_heads} heads"))
    if run.distill.teacher is not None:
        lines.append(Fact("teacher", run.distill.teacher))
    if summary:
        early = ", stopped early" if summary["stopped_early"] else ""
        lines += [
            Fact("parameters", f"{summary['parameters']:,}"),
            Fact("trained", f"{summary['epochs']:.2f} epochs, {summary['steps']:,} steps{early}"),
            Fact("best step", f"{summary['best_step']:,}"),
            Fact("time", f"{summary['seconds']['total']:,.0f} s"),
            Fact("trained on", f"{_workers(summary['workers'])}, {summary['device']}, {summary['precision']}"),
        ]
    return lines


def data_audit(manifest: shards.Manifest) -> DataAudit:
    """Return the audit of the prepared data."""
    counts = {name: split.label_counts for name, split in manifest.splits.items()}
    return DataAudit(
        splits=split_audits(manifest),
        reasons=sorted(manifest.reject_reasons.items(), key=lambda item: -item[1]),
        conflicting_texts=manifest.conflicting_texts,
        labels=[
            LabelRows(label, {name: rows.get(label, 0) for name, rows in counts.items()}) for label in manifest.labels
        ],
        edges=manifest.length_edges,
        max_length=manifest.max_length,
        lengths={name: split.length_histogram for name, split in manifest.splits.items()},
    )


def _shown_labels(data: DataAudit) -> DataAudit:
    """Return the audit with the names of the labels as the sections of the splits have them."""
    names = distinct([label.label for label in data.labels])
    return replace(data, labels=[LabelRows(name, label.rows) for name, label in zip(names, data.labels, strict=True)])


def split_audits(manifest: shards.Manifest) -> list[SplitAudit]:
    """Return the counts of each prepared split."""
    return [
        SplitAudit(
            name=name,
            rows=split.rows,
            rejected=split.rejected,
            tokens=split.tokens,
            truncated_rows=split.truncated_rows,
            truncated_token_share=split.truncated_token_share,
            duplicates=split.duplicates,
            duplicates_of_train=split.duplicates_of_train,
        )
        for name, split in manifest.splits.items()
    ]


def efficiency(summary: Mapping[str, Any]) -> list[EfficiencyFigure]:
    """Return the figures of `summary.json` about speed and lost time."""
    seconds, measured = summary["seconds"], "share of the time of steps and data loading"
    in_steps = seconds["steps"] / max(seconds["total"], 1e-9)
    rows = [
        (
            "tokens per second",
            f"{summary['tokens_per_second']:,.0f}",
            "without padding, in steps and data loading",
        ),
        ("padding", f"{summary['padding_share']:.1%}", "share of the positions in a batch"),
        ("waiting for data", f"{summary['data_share']:.1%}", measured),
        ("in steps", f"{in_steps:.1%}", "share of the time of the last attempt"),
        ("attempts", f"{summary['attempts']:,}", f"{summary['steps_repeated']:,} steps repeated after failures"),
        ("steps skipped", f"{summary['steps_skipped']:,}", "steps with a gradient that was not finite"),
    ]
    if isinstance(summary.get("mfu"), int | float):
        meaning = "share of the rate of large matrix products, measured on this device"
        rows.insert(1, ("MFU", f"{summary['mfu']:.1%}", meaning))
    return [EfficiencyFigure(*row) for row in rows]


def _seconds(summary: Mapping[str, Any]) -> list[Fact]:
    """Return the seconds of the last attempt by activity; `other` is the time that no activity measured."""
    parts = [Fact(name, value) for name, value in summary["seconds"].items() if name != "total"]
    rest = summary["seconds"]["total"] - sum(part.value for part in parts)
    return [*parts, Fact("other", max(0.0, rest))]


def changed(run: RunConfig) -> list[ChangedSetting]:
    """Return the keys whose value is not the default."""
    settings, defaults = (flatten_dotted(config.model_dump(mode="json")) for config in (run, RunConfig()))
    keys = [key for key in settings if key not in defaults or settings[key] != defaults[key]]
    return [ChangedSetting(key, plain(settings[key]), plain(defaults[key]) if key in defaults else "") for key in keys]


def plain(value: Any) -> str:
    """Return a setting as YAML text on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _reproduction(state: RunState) -> Reproduction:
    """Return the commands that repeat a run, and the seed, versions and hashes that its result depends on."""
    folder, summary, manifest = state.folder, state.summary, state.manifest
    file = shlex.quote(storage.join(folder, "run.yaml"))
    commands = [f"txclf train {file} name={state.run.name}-again"]
    commands += [f"txclf evaluate {shlex.quote(folder)}"] if state.has_test else []
    origin = [Fact("seed", state.run.seed)]
    if summary:
        origin.append(Fact("txclf version", summary["version"]))
    if manifest:
        origin.append(Fact("data fingerprint", manifest.fingerprint))
        origin.append(Fact("tokenizer hash", manifest.tokenizer_hash))
    with suppress(TxclfError):  # there is no bundle yet
        hashes = read_metadata(storage.join(folder, "model")).sha256
        origin += [Fact(f"SHA-256 of {name}", value) for name, value in hashes.items()]
    return Reproduction(commands, origin, _versions())


def _versions() -> list[Fact]:
    """Return the versions on this machine. Those of the workers may differ."""
    packages = [Fact(name, metadata.version(name)) for name in PACKAGES]
    return [Fact("Python", platform.python_version()), Fact("platform", platform.platform()), *packages]


def _workers(count: int) -> str:
    """Name where a run trained; a run of 0 workers trains in the process of the command."""
    return {0: "this process", 1: "1 worker"}.get(count, f"{count} workers")
