"""Advice about a run: one sentence per problem that its files show, with the key to change. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from txclf.artifacts.run_folder import RunState
from txclf.config.run_config import RunConfig
from txclf.core.text import shown
from txclf.data.shards import Manifest
from txclf.metrics import significance

RISE, GAP = 1.1, 0.5
"""A run overfits if the last validation loss is `RISE` times the lowest, and the training loss below `GAP` of it."""
FEW_ROWS = 10
"""Training rows below which a label is hard to learn."""
TRUNCATED_ROWS, TRUNCATED_TOKENS = 0.2, 0.05
"""Shares of training rows and tokens above which truncation is reported."""


def of_run(state: RunState, tested: Mapping[str, Any] | None = None) -> list[str]:
    """Return the advice about a finished run. `tested` are the scores of `txclf evaluate`, if there are any."""
    found = [
        overfitting(state.run, state.log),
        weaker_than_ngrams(state.run, tested or {}),
        *([few_rows(state.run, state.manifest), truncation(state.run, state.manifest)] if state.manifest else []),
    ]
    return [sentence for sentence in found if sentence]


def overfitting(run: RunConfig, log: Sequence[Mapping[str, float]]) -> str | None:
    """Return what to do if the validation loss, after calibration, rose while the training loss still fell."""
    validations = [line for line in log if "valid_loss" in line]
    losses = [line["train_loss"] for line in log if line.get("train_loss") is not None]
    if len(validations) < 2 or not losses:
        return None
    # What calibration undoes is no overfitting.
    key = "valid_calibrated_loss" if all("valid_calibrated_loss" in line for line in validations) else "valid_loss"
    best = min(validations, key=lambda line: line[key])
    lowest, last = best[key], validations[-1][key]
    if last <= RISE * lowest or losses[-1] >= GAP * lowest:
        return None
    if run.model.freeze == "encoder":  # which reads each row once
        keys = f"`train.label_smoothing` (now {run.train.label_smoothing:g})"
    else:
        keys = f"`train.token_dropout` (now {run.train.token_dropout:g}) or `model.dropout` (now {run.model.dropout:g})"
    return (
        f"Overfitting: the validation loss rose from {lowest:.3f} at epoch {best['epoch']:.3g} to {last:.3f}, while "
        f"the training loss fell to {losses[-1]:.3f}. Raise {keys}, or lower `train.epochs`, "
        f"on `{run.run_folder}/run.yaml` with another `name`: there the other keys keep their values."
    )


def weaker_than_ngrams(run: RunConfig, tested: Mapping[str, Any]) -> str | None:
    """Return what to do if the n-gram linear model scored better than the model."""
    linear = tested.get("baseline")
    by_macro_f1 = "accuracy" not in tested or run.train.monitor == "valid_f1_macro"
    key = "f1_macro" if by_macro_f1 else "accuracy"
    if not linear or tested[key] >= linear[key]:
        return None
    p_value = linear.get("f1_macro_p_value", linear["p_value"]) if by_macro_f1 else linear["p_value"]
    chance = ", which may be chance" if p_value >= significance.LEVEL else ""
    if run.model.pretrained is not None:
        advice = "Raise `train.epochs`, or search for `train.learning_rate` with `txclf tune`."
    elif not run.uses_ngrams and not run.train.train_on_valid:
        advice = "Set `model.ngrams: auto`, or fine-tune an encoder with `model.pretrained`."
    else:
        advice = "Fine-tune an encoder with `model.pretrained`."
    name = {"accuracy": "accuracy", "f1_macro": "macro F1"}[key]
    return f"The n-gram linear model is better: {name} {linear[key]:.4f} against {tested[key]:.4f}{chance}. {advice}"


def few_rows(run: RunConfig, manifest: Manifest) -> str | None:
    """Return what to do if labels have too few training rows."""
    counts = {label: rows for label, rows in manifest.splits["train"].label_counts.items() if rows < FEW_ROWS}
    if not counts:
        return None
    label = min(counts, key=lambda name: counts[name])
    others = f", and {len(counts) - 1:,} more label(s) have fewer than {FEW_ROWS}" if len(counts) > 1 else ""
    is_weighted = run.train.class_weights != "none" or run.train.sampling == "balanced"
    advice = "Add rows of them" if is_weighted else "Add rows of them, or set `train.class_weights: balanced`"
    return f"Few rows: `{shown(label)}` has {counts[label]:,} training row(s){others}. {advice}."


def truncation(run: RunConfig, manifest: Manifest) -> str | None:
    """Return what to do if truncation loses much of the training texts."""
    split = manifest.splits["train"]
    share = split.truncated_rows / max(1, split.rows)
    if share <= TRUNCATED_ROWS or split.truncated_token_share <= TRUNCATED_TOKENS:
        return None
    windows = "" if run.task_spec.is_seq2seq else ", or set `data.truncation: windows`"
    return (
        f"Truncation: {share:.0%} of the training rows are longer than {manifest.max_length:,} tokens and lose "
        f"{split.truncated_token_share:.0%} of all tokens. Raise `tokenizer.max_length`{windows}."
    )
