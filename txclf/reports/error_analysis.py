"""Scores, curves and worst mistakes of a bundle on one split, small enough for a page.

A page holds only the rows that it shows: curves are thinned, the confusion matrix is a list of its nonzero cells, and
only the worst mistakes bring their texts. A `Budget` bounds the rows that are scored and the time that this takes.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.core.text import distinct
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.labels import LabelSets
from txclf.evaluation import baselines
from txclf.inference.classifier import Classifier, sigmoid, softmax
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import intervals, multiclass, multilabel, significance
from txclf.ngrams import fitting
from txclf.reports.content import ALL_CLASSES, ClassCurves, ClassDifference, Example, ExampleSplit, LabelSplit, Mistake

CURVE_POINTS = 80
"""Max points of a curve."""
MAX_CLASS_CURVES = 100
"""Max classes with curves of their own: those with the most rows."""
MICRO_CELLS = 500_000
"""Max probabilities that the curves over all classes are computed from."""
MAX_MISTAKES = 200
"""Mistakes that are shown because they are the worst."""
MAX_MISTAKES_WITH_PAIRS = 600
"""Max mistakes after the worst one of each remaining pair of classes is added."""
MAX_TEXT_CHARS = 700
MAX_EXAMPLES = 40
CHUNK_ROWS = 512
"""Rows scored between two looks at the clock."""

NO_LABEL = "(none)"
"""True label of a label that is wrongly predicted, and prediction of a label that is missing (multilabel)."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Budget(NamedTuple):
    """Bounds on the work for a report."""

    rows: int
    """Max rows of a split that are scored."""
    seconds: float
    """Seconds after which no further chunk is scored."""
    baseline_rows: int
    """Max training rows of the baseline."""


QUICK = Budget(5_000, 15.0, 20_000)
"""Budget at the end of a run."""
FULL = Budget(50_000, 600.0, fitting.MAX_ROWS)
"""Budget of `txclf report`."""


class TextRow(NamedTuple):
    """Text of a row and its place in the input files."""

    text: str
    file: str
    row: int


class ScoredRows(NamedTuple):
    """Logits and true labels of the rows of a split that were scored."""

    total_rows: int
    """Rows of the whole split."""
    logits: Floats
    """Logits (N, C)."""
    labels: Any
    """Class ids (N,); in multilabel tasks booleans (N, C)."""
    sources: list[TextRow]

    @property
    def texts(self) -> list[str]:
        """Texts of the rows."""
        return [source.text for source in self.sources]


def score(classifier: Classifier, prepared: str, manifest: shards.Manifest, split: str, budget: Budget) -> ScoredRows:
    """Score the first rows of a split, which are a random sample, within the budget; at least one chunk."""
    start = time.monotonic()
    logits, labels, sources = list[Floats](), list[Any](), list[TextRow]()
    column = classifier.metadata.task_spec.shard_column
    for chunk in _chunks(prepared, manifest, split, ["input_ids", column, "text", "file", "row"]):
        table = chunk.slice(0, max(0, budget.rows - len(sources)))
        logits.append(classifier.logits(classifier.rows([table])))
        if classifier.is_multilabel:
            labels.append(LabelSets.from_tables([table]).matrix(len(classifier.labels)))
        else:
            labels.append(table[column].to_numpy().astype(np.int64))
        sources += [TextRow(**row) for row in table.select(["text", "file", "row"]).to_pylist()]
        if len(sources) >= budget.rows or time.monotonic() - start > budget.seconds:
            break
    return ScoredRows(manifest.splits[split].rows, np.concatenate(logits), np.concatenate(labels), sources)


def _chunks(prepared: str, manifest: shards.Manifest, split: str, columns: Sequence[str]) -> Iterator[Any]:
    """Yield tables of at most `CHUNK_ROWS` rows."""
    for shard in manifest.splits[split].shards:
        for group in shards.read_groups(prepared, shard, columns):
            for start in range(0, group.num_rows, CHUNK_ROWS):
                yield group.slice(start, CHUNK_ROWS)


def label_split(
    scored: ScoredRows,
    classifier: Classifier,
    *,
    split: str,
    title: str,
    compared: Mapping[str, Mapping[str, Any]],
) -> LabelSplit:
    """Return metrics, confusion matrix, calibration, curves and mistakes of scored rows."""
    names, probabilities = distinct(classifier.labels), classifier.calibrated(scored.logits)
    uncalibrated = sigmoid(scored.logits) if classifier.is_multilabel else softmax(scored.logits)
    cells = None
    if classifier.is_multilabel:
        metrics = multilabel.scores(probabilities, scored.labels, classifier.thresholds, names)
        found = intervals.of_scores(scored.labels, probabilities >= classifier.thresholds, len(names))
        targets = scored.labels
        bins = [reliability(matrix.ravel(), targets.ravel()) for matrix in (probabilities, uncalibrated)]
        wrong = label_mistakes(scored, probabilities, names, classifier.thresholds)
    else:
        metrics = multiclass.scores(probabilities, scored.labels, names)
        found = intervals.of_scores(scored.labels, probabilities.argmax(axis=1), len(names))
        confusion = multiclass.Confusion.of(probabilities.argmax(axis=1), scored.labels, len(names))
        cells = [(true, predicted, rows) for true, predicted, rows in confusion.cells.tolist()]
        metrics = {key: value for key, value in metrics.items() if not key.startswith("confusion")}
        targets = scored.labels[:, None] == np.arange(len(names))
        bins = [
            reliability(matrix.max(axis=1), matrix.argmax(axis=1) == scored.labels)
            for matrix in (probabilities, uncalibrated)
        ]
        wrong = mistakes(scored, probabilities, names)
    return LabelSplit(
        id=split,
        title=title,
        rows=len(scored.labels),
        total_rows=scored.total_rows,
        labels=names,
        confusion=cells,
        per_class=metrics.pop("per_class"),
        differences=_class_differences(compared.get("baseline", {}), names),
        metrics=metrics,
        intervals={
            "f1_micro" if classifier.is_multilabel else "accuracy": found.micro[1:],
            "f1_macro": found.macro[1:],
        },
        compared={name: _plain(scores) for name, scores in compared.items()},
        reliability=bins[0],
        uncalibrated=bins[1] if classifier.temperature != 1.0 else None,
        curves=curves(probabilities, targets),
        mistakes=wrong,
    )


def _class_differences(baseline: Mapping[str, Any], names: Sequence[str]) -> dict[str, ClassDifference]:
    """Return the F1 of the baseline and the difference to it by the shown names of the labels; empty if not scored."""
    scores = baseline.get("per_class", {}).values()
    if len(scores) != len(names):  # of an earlier version, which did not write them
        return {}
    return {name: ClassDifference(one["f1"], *one["difference"]) for name, one in zip(names, scores, strict=True)}


def _plain(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a baseline without those by label, whose names are not those of the page."""
    return {key: value for key, value in scores.items() if key != "per_class"}


def reliability(confidence: Floats, right: Bools, num_bins: int = 15) -> list[list[float]]:
    """Return mean confidence, accuracy and count of each bin of equal width that has rows."""
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    members = [bins == number for number in np.unique(bins)]
    return [[float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum())] for rows in members]


def curves(probabilities: Floats, targets: Bools) -> list[ClassCurves]:
    """Return the curves over all classes, then those of each of the largest classes against the rest.

    Args: probabilities (N, C) and targets (N, C). A class that no row has, or every row, has no curves.
    """
    sample = slice(max(1, MICRO_CELLS // probabilities.shape[1]))
    support = targets.sum(axis=0)
    largest = [number for number in np.argsort(-support, kind="stable")[:MAX_CLASS_CURVES].tolist() if support[number]]
    return [
        class_curves(probabilities[sample].ravel(), targets[sample].ravel(), ALL_CLASSES),
        *(
            class_curves(probabilities[:, number], targets[:, number], number)
            for number in largest
            if support[number] < len(targets)
        ),
    ]


def class_curves(scores: Floats, targets: Bools, class_id: int) -> ClassCurves:
    """Return both curves of scores (N,) against targets (N,), thinned, and the areas under the full curves."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(targets, scores)
    precision, recall, _ = precision_recall_curve(targets, scores)
    thin_fpr, thin_tpr = _thinned(fpr, tpr)
    thin_recall, thin_precision = _thinned(recall, precision)
    return ClassCurves(
        class_id=class_id,
        fpr=thin_fpr,
        tpr=thin_tpr,
        auc=float(auc(fpr, tpr)),
        recall=thin_recall,
        precision=thin_precision,
        ap=float(average_precision_score(targets, scores)),
    )


def _thinned(x: Any, y: Any) -> tuple[list[float], list[float]]:
    """Return about `CURVE_POINTS` points evenly spaced along the curve, both ends included."""
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    points = np.unique(np.searchsorted(length, np.linspace(0, length[-1], CURVE_POINTS)).clip(0, len(x) - 1))
    points = np.unique(np.concatenate([[0], points, [len(x) - 1]]))
    return np.round(x[points], 4).tolist(), np.round(y[points], 4).tolist()


def mistakes(scored: ScoredRows, probabilities: Floats, names: Sequence[str]) -> list[Mistake]:
    """Return single-label mistakes, lowest probability of the true label first.

    The worst `MAX_MISTAKES` come first, then the worst mistake of each pair of classes that is not among them.
    """
    predicted = probabilities.argmax(axis=1)
    true_probability = probabilities[np.arange(len(predicted)), scored.labels]
    wrong = np.flatnonzero(predicted != scored.labels)
    worst = wrong[np.argsort(true_probability[wrong], kind="stable")].tolist()
    shown = worst[:MAX_MISTAKES]
    pairs = {(scored.labels[row], predicted[row]) for row in shown}
    for row in worst[MAX_MISTAKES:]:
        pair = (scored.labels[row], predicted[row])
        if pair not in pairs and len(shown) < MAX_MISTAKES_WITH_PAIRS:
            pairs.add(pair)
            shown.append(row)
    return [
        Mistake(
            text=_shortened(scored.sources[row].text),
            file=scored.sources[row].file,
            row=scored.sources[row].row,
            label=names[scored.labels[row]],
            predicted=names[predicted[row]],
            label_probability=float(true_probability[row]),
            top=_named(probabilities[row], np.argsort(-probabilities[row], kind="stable")[:3].tolist(), names),
            true_labels=[names[scored.labels[row]]],
        )
        for row in shown
    ]


def label_mistakes(
    scored: ScoredRows, probabilities: Floats, names: Sequence[str], thresholds: Floats
) -> list[Mistake]:
    """Return multilabel mistakes, at most `MAX_MISTAKES`: the worst label of each row, most confident first.

    The distance of a probability from its threshold, as a share of the largest possible distance, ranks the mistakes.
    """
    predicted = probabilities >= thresholds
    max_distance = np.where(predicted, 1 - thresholds, thresholds).clip(1e-6)
    distance = np.where(predicted != scored.labels, np.abs(probabilities - thresholds) / max_distance, -1.0)
    worst = distance.max(axis=1)
    rows = [row for row in np.argsort(-worst, kind="stable")[:MAX_MISTAKES].tolist() if worst[row] >= 0]
    shown = []
    for row in rows:
        label = int(distance[row].argmax())
        true_labels = [names[number] for number in np.flatnonzero(scored.labels[row]).tolist()]
        order = np.argsort(-probabilities[row], kind="stable").tolist()
        likely = [number for number in order if predicted[row, number] or names[number] in true_labels][:6]
        shown.append(
            Mistake(
                text=_shortened(scored.sources[row].text),
                file=scored.sources[row].file,
                row=scored.sources[row].row,
                label=NO_LABEL if predicted[row, label] else names[label],
                predicted=names[label] if predicted[row, label] else NO_LABEL,
                label_probability=float(probabilities[row, label]),
                top=_named(probabilities[row], likely, names),
                true_labels=true_labels,
            )
        )
    return shown


def _named(probabilities: Floats, classes: Sequence[int], names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the names and probabilities of classes."""
    return [(names[number], float(probabilities[number])) for number in classes]


def _shortened(text: str) -> str:
    """Return the first `MAX_TEXT_CHARS` characters of a text, with an ellipsis if it is longer."""
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + " …"


def baseline_scores(
    scored: ScoredRows, prepared: str, manifest: shards.Manifest, *, lowercase: bool, budget: Budget
) -> dict[str, dict[str, Any]]:
    """Score the majority class and the n-gram linear model on the same rows, by their keys in `metrics.json`."""
    classes = len(manifest.labels)
    texts, label_chunks = list[str](), list[Ints]()
    for chunk in _chunks(prepared, manifest, "train", ["label", "text"]):
        texts += chunk["text"].to_pylist()
        label_chunks.append(chunk["label"].to_numpy().astype(np.int64))
        if len(texts) >= budget.baseline_rows:
            break
    labels = np.concatenate(label_chunks)[: budget.baseline_rows]
    majority = baselines.majority(labels, len(scored.labels))
    train, none = baselines.Rows(texts[: budget.baseline_rows], labels), baselines.Rows([], labels[:0])
    # Nothing is chosen on the validation rows, because they are scored here.
    linear = baselines.ngrams(train, none, scored.texts, num_labels=classes, lowercase=lowercase)
    predicted = linear.logits.argmax(axis=1)
    return {
        "majority": multiclass.short_scores(majority, scored.labels, classes),
        "baseline": {
            **multiclass.short_scores(predicted, scored.labels, classes),
            "p_value": significance.mcnemar(scored.logits.argmax(axis=1) == scored.labels, predicted == scored.labels),
            **intervals.record(scored.labels, scored.logits.argmax(axis=1), predicted, manifest.labels),
            **linear.record(manifest.splits["train"].rows),
        },
    }


def example_split(
    model: Seq2Seq,
    prepared: str,
    manifest: shards.Manifest,
    *,
    split: str,
    title: str,
    metrics: Mapping[str, Any],
) -> ExampleSplit:
    """Return the outputs of a seq2seq model for the first rows of a split."""
    columns = ["input_ids", "text", "target", "file", "row"]
    table = next(iter(_chunks(prepared, manifest, split, columns))).slice(0, MAX_EXAMPLES)
    outputs = model.generate(TokenRows([table]))
    examples = [
        Example(
            text=_shortened(row["text"]),
            target=_shortened(row["target"]),
            output=_shortened(output),
            right=output.split() == row["target"].split(),
            file=row["file"],
            row=row["row"],
        )
        for row, output in zip(table.select(columns[1:]).to_pylist(), outputs, strict=True)
    ]
    return ExampleSplit(
        id=split,
        title=title,
        rows=len(outputs),
        total_rows=manifest.splits[split].rows,
        metrics=metrics,
        examples=examples,
    )
