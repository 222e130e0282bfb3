"""`txclf evaluate`: scores a run's bundle on its test split or on other labelled files, beside honest baselines."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)
from torchmetrics.functional.text import chrf_score, sacre_bleu_score

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import records, shards, sources
from txclf.data.batches import PairRows
from txclf.data.labels import LabelSets
from txclf.data.tokenizer import encode_targets
from txclf.data.word_cache import Words
from txclf.evaluation import baselines
from txclf.inference.bundle import Classifier, sigmoid, softmax
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import calibration, multilabel, thresholds

METRICS = "metrics.json"
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


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
        score = _evaluate_sets if classifier.several else _evaluate_classes
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
    columns = ["input_ids", "labels" if classifier.several else "label", "text"]
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
    return LabelSets.of([table]).matrix(classes)


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
        target_ids, _ = encode_targets(Words(model.target_tokenizer), targets, model.description.max_length)
        columns = [input_ids, target_ids, pa.array(targets)]
        table, skipped = pa.table(columns, names=["input_ids", "target_ids", "target"]), bad
    started = time.monotonic()
    outputs = model.generate(model.rows([table]))
    seconds = time.monotonic() - started
    return {
        "data": "test" if data is None else list(data),
        "skipped": skipped,
        "beams": model.settings.beams,
        "seconds": round(seconds, 2),
        **model.teacher_forced(PairRows.of([table])),
        **text_scores(outputs, table["target"].to_pylist()),
    }


def text_scores(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """Exact match, BLEU (sacreBLEU's, cased, tokenizer 13a; Post 2018) and chrF (Popović 2015), in percent but for the
    first."""
    pairs = [[target] for target in targets]
    exact = np.mean([output.split() == target.split() for output, target in zip(outputs, targets, strict=True)])
    return {
        "rows": len(outputs),
        "exact_match": float(exact),
        "bleu": 100 * float(sacre_bleu_score(outputs, pairs)),
        "chrf": 100 * float(torch.as_tensor(chrf_score(outputs, pairs, n_word_order=0))),
    }


def _read(run: RunConfig, classifier: Classifier, paths: Sequence[str]) -> tuple[pa.Table, int]:
    """Labelled rows of other files, tokenized for the bundle, and how many were skipped."""
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    texts, labels, skipped = _labelled(run, paths, run.data.label, numbers)
    input_ids = classifier.encode(texts)
    joined = pa.array(["\n".join(text) for text in texts])
    if classifier.several:
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


def scores(probabilities: Floats, labels: Ints, names: Sequence[str]) -> dict[str, Any]:
    """All metrics of probabilities (rows, classes) against labels (rows,).

    Macro means run over the classes that occur in the labels or in the predictions, as in scikit-learn; AUROC is one
    against the rest, over the classes that occur and do not fill all rows; the calibration error has 15 bins of equal
    width (Guo et al., arXiv:1706.04599). `f1_minority` is the F1 of the class with the fewest rows here.
    """
    classes = len(names)
    predicted = probabilities.argmax(axis=1)
    probabilities_t, labels_t = torch.from_numpy(probabilities), torch.from_numpy(labels)
    confusion = _confusion(predicted, labels, classes)
    precision, recall, f1, support = _by_class(confusion)
    seen = (confusion.sum(axis=0) + support) > 0
    scorable = (support > 0) & (support < len(labels))
    auroc = math.nan
    if scorable.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without rows, which are left out here
            each = multiclass_auroc(probabilities_t, labels_t, classes, average=None)
        auroc = float(each[torch.from_numpy(scorable)].mean())
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1.0)
    return {
        "rows": len(labels),
        "loss": float(-np.log(chosen).mean()),
        "accuracy": float((predicted == labels).mean()),
        "f1_macro": float(f1[seen].mean()),
        "f1_minority": float(f1[_rarest(f1, support)]),
        "minority": names[_rarest(f1, support)],
        "precision_macro": float(precision[seen].mean()),
        "recall_macro": float(recall[seen].mean()),
        "mcc": _matthews(confusion),
        "auroc_macro": None if math.isnan(auroc) else auroc,
        "calibration_error": float(multiclass_calibration_error(probabilities_t, labels_t, classes, n_bins=15)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
    }


def short_scores(predicted: Ints, labels: Ints, classes: int) -> dict[str, float]:
    """Accuracy, macro F1 and the rarest class's F1 of predicted classes."""
    confusion = _confusion(predicted, labels, classes)
    _, _, f1, support = _by_class(confusion)
    seen = (confusion.sum(axis=0) + support) > 0
    return {
        "accuracy": float((predicted == labels).mean()),
        "f1_macro": float(f1[seen].mean()),
        "f1_minority": float(f1[_rarest(f1, support)]),
    }


def _rarest(f1: Any, support: Ints) -> int:
    """The class with the fewest rows, of those that have any; of equals the one predicted worst."""
    return min(np.flatnonzero(support).tolist(), key=lambda number: (support[number], f1[number]))


def _confusion(predicted: Ints, labels: Ints, classes: int) -> Ints:
    """Rows by true class (first axis) and predicted class."""
    matrix = multiclass_confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(labels), classes)
    return np.asarray(matrix.numpy(), np.int64)


def _matthews(confusion: Ints) -> float:
    """Gorodkin's correlation (2004); 0 where it is not defined: all rows have one class, or are given one."""
    support, guessed, rows = confusion.sum(axis=1), confusion.sum(axis=0), int(confusion.sum())
    spread = float(rows**2 - (guessed**2).sum()) * float(rows**2 - (support**2).sum())
    return float(np.trace(confusion) * rows - support @ guessed) / math.sqrt(spread) if spread else 0.0


def _by_class(confusion: Ints) -> tuple[Any, Any, Any, Any]:
    hits, support, guessed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(guessed, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + guessed, 1)
    return precision, recall, f1, support
