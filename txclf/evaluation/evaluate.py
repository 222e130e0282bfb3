"""`txclf evaluate`: score a finished run on its test split or on other labelled files, next to simple baselines.

`EVALUATORS` holds one evaluator per task. Each returns the content of `metrics.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.data import shards
from txclf.data.batches import PairRows
from txclf.data.labels import LabelSets
from txclf.evaluation import baselines
from txclf.evaluation.labelled_files import Rows, read_labels, read_targets
from txclf.inference.classifier import Classifier, sigmoid, softmax
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import calibration, multiclass, multilabel, thresholds
from txclf.metrics.text import text_scores

METRICS = "metrics.json"

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Finished run and the rows to score."""

    run: RunConfig
    model: str
    """Folder of the run's bundle."""
    prepared: str
    """Folder of the prepared data."""
    manifest: shards.Manifest
    data: Sequence[str] | None
    """Labelled files to score; None for the test split."""
    with_baseline: bool
    """True to score the baselines too. Seq2seq has none."""

    def split(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Return columns of a prepared split."""
        return shards.read_split(self.prepared, self.manifest, name, columns)

    def test_rows(self, columns: Sequence[str]) -> Rows:
        """Return columns of the test split."""
        return Rows(self.split("test", columns), self.manifest.splits["test"].rejected)

    def source(self, skipped: int) -> dict[str, Any]:
        """Return the part of the result that names the scored rows."""
        return {"data": "test" if self.data is None else list(self.data), "skipped": skipped}


def evaluate(run_folder: str, data: Sequence[str] | None = None, with_baseline: bool = True) -> dict[str, Any]:
    """Score every row of the test split, or of the files `data`; write `metrics.json` and return its content.

    Raises `ConfigError` if the folder is not a finished run or has no test split, `DataError` for bad rows.
    """
    folder = storage.absolute(run_folder)
    summary = storage.join(folder, "summary.json")
    if not storage.exists(summary):
        raise ConfigError(
            f"`{run_folder}`: not a finished run, because it has no summary.json. "
            "Train it, or resume its training with --resume."
        )
    run = run_config.load(storage.join(folder, "run.yaml"))
    prepared = storage.read_json(summary)["prepared"]
    evaluation = Evaluation(
        run=run,
        model=storage.join(folder, "model"),
        prepared=prepared,
        manifest=shards.load_manifest(prepared),
        data=data,
        with_baseline=with_baseline,
    )
    if data is None and "test" not in evaluation.manifest.splits:
        raise ConfigError(f"`{run_folder}`: the run has no `data.test`. Pass other labelled files with --data FILE.")
    result = EVALUATORS[run.task_spec.name](evaluation)
    storage.write_json(storage.join(folder, METRICS), result)
    return result


def evaluate_classes(evaluation: Evaluation) -> dict[str, Any]:
    """Score a single-label classifier."""
    classifier = Classifier.load(evaluation.model)
    table, skipped = _label_rows(evaluation, classifier)
    labels = _class_ids(table)
    logits = classifier.logits(classifier.rows([table]))
    scores = multiclass.scores(softmax(logits, classifier.temperature), labels, classifier.labels)
    return {
        **evaluation.source(skipped),
        "labels": classifier.labels,
        **scores,
        "temperature": classifier.temperature,
        "calibration_error_before": calibration.error(logits, labels),
        **(_class_baselines(evaluation, table) if evaluation.with_baseline else {}),
    }


def _class_baselines(evaluation: Evaluation, table: pa.Table) -> dict[str, Any]:
    """Score the majority class and the n-gram logistic regression on the rows of a table."""
    train = evaluation.split("train", ["label", "text"])
    train_labels, labels, classes = _class_ids(train), _class_ids(table), len(evaluation.manifest.labels)
    majority = baselines.majority(train_labels, len(labels))
    lowercase = evaluation.run.tokenizer.lowercase
    texts = table["text"].to_pylist()
    linear = baselines.logistic_regression(train["text"].to_pylist(), train_labels, texts, lowercase)
    return {
        "majority": multiclass.short_scores(majority, labels, classes),
        "baseline": {
            "model": "n-gram logistic regression",
            **multiclass.short_scores(linear.predictions, labels, classes),
            "train_rows": linear.train_rows,
            "seconds": round(linear.seconds, 2),
        },
    }


def evaluate_label_sets(evaluation: Evaluation) -> dict[str, Any]:
    """Score a multilabel classifier at its thresholds."""
    classifier = Classifier.load(evaluation.model)
    table, skipped = _label_rows(evaluation, classifier)
    logits, targets = classifier.logits(classifier.rows([table])), _targets(table, len(classifier.labels))
    probabilities = classifier.calibrated(logits)
    return {
        **evaluation.source(skipped),
        "labels": classifier.labels,
        **multilabel.scores(probabilities, targets, classifier.thresholds, classifier.labels),
        "temperature": classifier.temperature,
        "calibration_error_before": calibration.error(logits, targets),
        **(_label_set_baselines(evaluation, table) if evaluation.with_baseline else {}),
    }


def _label_set_baselines(evaluation: Evaluation, table: pa.Table) -> dict[str, Any]:
    """Score the most frequent set of labels and one n-gram logistic regression per label on the rows of a table."""
    labels = len(evaluation.manifest.labels)
    train, valid = (evaluation.split(name, ["labels", "text"]) for name in ("train", "valid"))
    train_targets, targets = _targets(train, labels), _targets(table, labels)
    sets, counts = np.unique(train_targets, axis=0, return_counts=True)
    majority = np.tile(sets[counts.argmax()], (len(targets), 1))
    texts = [*valid["text"].to_pylist(), *table["text"].to_pylist()]
    lowercase = evaluation.run.tokenizer.lowercase
    linear = baselines.one_vs_rest(train["text"].to_pylist(), train_targets, texts, lowercase)
    limits = np.array(thresholds.choose(linear.logits[: len(valid)], _targets(valid, labels)), np.float32)
    predicted = sigmoid(linear.logits[len(valid) :]) >= limits
    return {
        "majority": multilabel.short_scores(majority, targets),
        "baseline": {
            "model": "n-gram logistic regression, one for each label, its thresholds chosen on the validation rows",
            **multilabel.short_scores(predicted, targets),
            "train_rows": linear.train_rows,
            "seconds": round(linear.seconds, 2),
        },
    }


def evaluate_targets(evaluation: Evaluation) -> dict[str, Any]:
    """Score a seq2seq model: the targets with teacher forcing, the generated texts with BLEU, chrF and exact match."""
    model = Seq2Seq.load(evaluation.model)
    if evaluation.data is None:
        table, skipped = evaluation.test_rows(["input_ids", "target_ids", "target"])
    else:
        table, skipped = read_targets(evaluation.run, model, evaluation.data)
    start = time.monotonic()
    outputs = model.generate(model.rows([table]))
    seconds = time.monotonic() - start
    return {
        **evaluation.source(skipped),
        "beams": model.settings.num_beams,
        "seconds": round(seconds, 2),
        **model.teacher_forced(PairRows.from_tables([table])),
        **text_scores(outputs, table["target"].to_pylist()),
    }


EVALUATORS: dict[str, Callable[[Evaluation], dict[str, Any]]] = {
    "classify": evaluate_classes,
    "multilabel": evaluate_label_sets,
    "seq2seq": evaluate_targets,
}
"""Evaluator by `TaskSpec.name`."""


def _label_rows(evaluation: Evaluation, classifier: Classifier) -> Rows:
    """Return the rows to score as `input_ids`, `text` and the column with the answer."""
    if evaluation.data is not None:
        return read_labels(evaluation.run, classifier, evaluation.data)
    return evaluation.test_rows([*evaluation.run.task_spec.shard_columns, "text"])


def _class_ids(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the class id of each row (rows,)."""
    return np.asarray(table["label"].to_numpy(), np.int64)


def _targets(table: pa.Table, labels: int) -> Bools:
    """Return which labels each row has (rows, labels)."""
    return LabelSets.from_tables([table]).matrix(labels)
