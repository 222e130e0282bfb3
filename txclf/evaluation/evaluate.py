"""`txclf evaluate`: scores a run's bundle on its test split or on other labelled files, beside honest baselines."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import records, shards, sources
from txclf.data.batches import PairRows
from txclf.data.labels import LabelSets
from txclf.data.tokenizer import encode_targets
from txclf.data.word_cache import WordCache
from txclf.evaluation import baselines
from txclf.inference.classifier import Classifier, sigmoid, softmax
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import calibration, multilabel, thresholds
from txclf.metrics.multiclass import scores, short_scores
from txclf.metrics.text import text_scores

METRICS = "metrics.json"


def evaluate(run_folder: str, data: Sequence[str] | None = None, with_baseline: bool = True) -> dict[str, Any]:
    """Scores every row of the test split (or of the files given) once; writes `metrics.json`, returns its content.

    Raises `ConfigError` when the folder is no finished run or has no test split, `DataError` for bad rows.
    """
    folder = storage.absolute(run_folder)
    summary_path = storage.join(folder, "summary.json")
    if not storage.exists(summary_path):
        raise ConfigError(f"`{run_folder}`: not a finished run, it has no summary.json: train it, or go on by --resume")
    run = run_config.load(storage.join(folder, "run.yaml"))
    prepared = storage.read_json(summary_path)["prepared"]
    manifest = shards.load_manifest(prepared)
    if data is None and "test" not in manifest.splits:
        raise ConfigError(f"`{run_folder}`: the run has no `data.test`: score other files by --data FILE")
    if run.task == "seq2seq":
        result = _evaluate_pairs(run, folder, prepared, manifest, data)
    else:
        classifier = Classifier.load(storage.join(folder, "model"))
        score = _evaluate_sets if classifier.is_multilabel else _evaluate_classes
        result = score(run, classifier, prepared, manifest, data, with_baseline)
    storage.write_json(storage.join(folder, METRICS), result)
    return result


def _evaluate_classes(
    run: RunConfig,
    classifier: Classifier,
    prepared: str,
    manifest: shards.Manifest,
    data: Sequence[str] | None,
    with_baseline: bool,
) -> dict[str, Any]:
    table, skipped = _rows(run, classifier, prepared, manifest, data)
    labels = table["label"].to_numpy().astype(np.int64)
    logits = classifier.logits(classifier.rows([table]))
    probabilities = softmax(logits, classifier.temperature)
    result = {
        "data": "test" if data is None else list(data),
        "skipped": skipped,
        "labels": classifier.labels,
        **scores(probabilities, labels, classifier.labels),
        "temperature": classifier.temperature,
        "calibration_error_before": calibration.error(logits, labels),
    }
    if with_baseline:
        train = shards.read_split(prepared, manifest, "train", ["label", "text"])
        train_labels = train["label"].to_numpy().astype(np.int64)
        most = baselines.majority(train_labels, len(labels))
        result["majority"] = short_scores(most, labels, len(classifier.labels))
        texts = train["text"].to_pylist()
        linear = baselines.logistic_regression(texts, train_labels, table["text"].to_pylist(), run.tokenizer.lowercase)
        result["baseline"] = {
            "model": "n-gram logistic regression",
            **short_scores(linear.predictions, labels, len(classifier.labels)),
            "train_rows": linear.train_rows,
            "seconds": round(linear.seconds, 2),
        }
    return result


def _rows(
    run: RunConfig, classifier: Classifier, prepared: str, manifest: shards.Manifest, data: Sequence[str] | None
) -> tuple[pa.Table, int]:
    """What is scored: the test split, or the rows of `data`; and how many of them could not be."""
    if data is not None:
        return _read(run, classifier, data)
    columns = ["input_ids", "labels" if classifier.is_multilabel else "label", "text"]
    return shards.read_split(prepared, manifest, "test", columns), manifest.splits["test"].rejected


def _evaluate_sets(
    run: RunConfig,
    classifier: Classifier,
    prepared: str,
    manifest: shards.Manifest,
    data: Sequence[str] | None,
    with_baseline: bool,
) -> dict[str, Any]:
    names = classifier.labels
    table, skipped = _rows(run, classifier, prepared, manifest, data)
    rows = classifier.rows([table])
    logits, targets = classifier.logits(rows), _targets(table, len(names))
    result = {
        "data": "test" if data is None else list(data),
        "skipped": skipped,
        "labels": names,
        **multilabel.scores(classifier.calibrated(logits), targets, classifier.thresholds, names),
        "temperature": classifier.temperature,
        "calibration_error_before": calibration.error(logits, targets),
    }
    if with_baseline:
        train, valid = (shards.read_split(prepared, manifest, name, ["labels", "text"]) for name in ("train", "valid"))
        train_targets, valid_targets = _targets(train, len(names)), _targets(valid, len(names))
        sets, counts = np.unique(train_targets, axis=0, return_counts=True)
        most = np.tile(sets[counts.argmax()], (len(targets), 1))
        result["majority"] = multilabel.short_scores(most, targets)
        texts = [*valid["text"].to_pylist(), *table["text"].to_pylist()]
        found, train_rows, seconds = baselines.one_vs_rest(
            train["text"].to_pylist(), train_targets, texts, run.tokenizer.lowercase
        )
        limits = np.array(thresholds.choose(found[: len(valid)], valid_targets), np.float32)
        given = sigmoid(found[len(valid) :]) >= limits
        result["baseline"] = {
            "model": "n-gram logistic regression, one for each label, its thresholds chosen on the validation rows",
            **multilabel.short_scores(given, targets),
            "train_rows": train_rows,
            "seconds": round(seconds, 2),
        }
    return result


def _targets(table: pa.Table, classes: int) -> npt.NDArray[np.bool_]:
    """Whether each row has each label (rows, classes)."""
    return LabelSets.from_tables([table]).matrix(classes)


def _evaluate_pairs(
    run: RunConfig, folder: str, prepared: str, manifest: shards.Manifest, data: Sequence[str] | None
) -> dict[str, Any]:
    model = Seq2Seq.load(storage.join(folder, "model"))
    if data is None:
        table = shards.read_split(prepared, manifest, "test", ["input_ids", "target_ids", "target"])
        skipped = manifest.splits["test"].rejected
    else:
        texts, found, bad = _labelled(run, data, run.data.target, None)
        targets = [target for (target,) in found]
        input_ids = model.encode(texts)
        target_ids, _ = encode_targets(WordCache(model.target_tokenizer), targets, model.metadata.max_length)
        columns = [input_ids, target_ids, pa.array(targets)]
        table, skipped = pa.table(columns, names=["input_ids", "target_ids", "target"]), bad
    started = time.monotonic()
    outputs = model.generate(model.rows([table]))
    seconds = time.monotonic() - started
    return {
        "data": "test" if data is None else list(data),
        "skipped": skipped,
        "beams": model.settings.num_beams,
        "seconds": round(seconds, 2),
        **model.teacher_forced(PairRows.from_tables([table])),
        **text_scores(outputs, table["target"].to_pylist()),
    }


def _read(run: RunConfig, classifier: Classifier, paths: Sequence[str]) -> tuple[pa.Table, int]:
    """Labelled rows of other files, tokenized for the bundle, and how many were skipped."""
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    texts, labels, skipped = _labelled(run, paths, run.data.label, numbers)
    input_ids = classifier.encode(texts)
    joined = pa.array(["\n".join(text) for text in texts])
    if classifier.is_multilabel:
        sets = pa.array([sorted(numbers[label] for label in row) for row in labels], pa.list_(pa.int32()))
        return pa.table([input_ids, sets, joined], names=["input_ids", "labels", "text"]), skipped
    known = pa.array([numbers[label] for (label,) in labels], pa.int32())
    return pa.table([input_ids, known, joined], names=["input_ids", "label", "text"]), skipped


def _labelled(
    run: RunConfig, paths: Sequence[str], column: str, known: Collection[str] | None
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], int]:
    """Texts and what a column says of them, all of `known` if that is given; and how many rows were skipped."""
    texts: list[tuple[str, ...]] = []
    labels: list[tuple[str, ...]] = []
    delimiter = run.data.label_delimiter if run.task == "multilabel" else None
    bad: list[records.Reject] = []
    for source in sources.find_sources(paths):
        for rows, rejects in records.read_rows(source, run.data.text, column, label_delimiter=delimiter):
            bad += rejects
            found = rows.label_sets or [(label,) for label in rows.labels]
            for text, row_labels, file, row in zip(rows.texts, found, rows.files, rows.rows, strict=True):
                unknown = [] if known is None else [label for label in row_labels if label not in known]
                if unknown:
                    bad.append(records.Reject(file, row, f"label `{unknown[0]}` is not one of the model's"))
                else:
                    texts.append(text)
                    labels.append(row_labels)
    if bad and run.data.on_bad_row == "fail":
        lines = "\n".join(f"  {reject.file}: row {reject.row:,}: {reject.reason}" for reject in bad[:20])
        raise DataError(f"{len(bad):,} bad row(s), the first of them:\n{lines}\nthe run has `data.on_bad_row: fail`")
    if not texts:
        raise DataError(f"no usable row in {', '.join(paths)}")
    return texts, labels, len(bad)
