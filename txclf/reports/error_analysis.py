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
from txclf.metrics import intervals, multiclass, multilabel
from txclf.ngrams import fitting
from txclf.reports import curves, word_weights
from txclf.reports.content import ClassDifference, Example, ExampleSplit, LabelSplit, Mistake
from txclf.reports.word_weights import MAX_TEXT_CHARS

MAX_MISTAKES = 200
"""Mistakes that are shown because they are the worst."""
MAX_MISTAKES_WITH_PAIRS = 600
"""Max mistakes after the worst one of each remaining pair of classes is added."""
MAX_CORRECT = 40
"""Correct rows that are shown because the model was least certain."""
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
    explained_rows: int = 0
    """Max mistakes whose words are weighed. They take at most a fifth of `seconds`."""


QUICK = Budget(5_000, 15.0, 20_000, 20)
"""Budget at the end of a run."""
FULL = Budget(50_000, 600.0, fitting.MAX_ROWS, 100)
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
    budget: Budget,
) -> LabelSplit:
    """Return metrics, confusion matrix, calibration, curves and mistakes of scored rows."""
    names, probabilities = distinct(classifier.labels), classifier.calibrated(scored.logits)
    uncalibrated = sigmoid(scored.logits) if classifier.is_multilabel else softmax(scored.logits)
    cells = None
    if classifier.is_multilabel:
        metrics = multilabel.scores(probabilities, scored.labels, classifier.thresholds, names)
        found = intervals.of_scores(scored.labels, probabilities >= classifier.thresholds, len(names))
        targets = scored.labels
        bins = [curves.reliability(matrix.ravel(), targets.ravel()) for matrix in (probabilities, uncalibrated)]
        wrong = label_mistakes(scored, probabilities, names, classifier.thresholds)
        right = label_correct(scored, probabilities, names, classifier.thresholds)
    else:
        metrics = multiclass.scores(probabilities, scored.labels, names)
        found = intervals.of_scores(scored.labels, probabilities.argmax(axis=1), len(names))
        confusion = multiclass.Confusion.of(probabilities.argmax(axis=1), scored.labels, len(names))
        cells = [(true, predicted, rows) for true, predicted, rows in confusion.cells.tolist()]
        metrics = {key: value for key, value in metrics.items() if not key.startswith("confusion")}
        targets = scored.labels[:, None] == np.arange(len(names))
        bins = [
            curves.reliability(matrix.max(axis=1), matrix.argmax(axis=1) == scored.labels)
            for matrix in (probabilities, uncalibrated)
        ]
        wrong, right = mistakes(scored, probabilities, names), correct(scored, probabilities, names)
    asked = [wrong_one.label if wrong_one.predicted == NO_LABEL else wrong_one.predicted for wrong_one in wrong]
    texts = {(source.file, source.row): source.text for source in scored.sources}
    wrong, fidelity = word_weights.explained(
        classifier, wrong, asked[: budget.explained_rows], texts, budget.seconds / 5
    )
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
        coverage=curves.coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == scored.labels)
        if cells is not None
        else [],
        curves=curves.by_class(probabilities, targets),
        mistakes=wrong,
        fidelity=fidelity,
        correct=right,
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
    return [_answer(scored, probabilities, names, row) for row in shown]


def correct(scored: ScoredRows, probabilities: Floats, names: Sequence[str]) -> list[Mistake]:
    """Return right single-label predictions: the least confident, then the most confident one of each class."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    right = np.flatnonzero(predicted == scored.labels)
    right = right[np.argsort(confidence[right], kind="stable")]
    shown = right[:MAX_CORRECT].tolist()
    best = {int(predicted[row]): row for row in right.tolist()}  # the last one is the most confident
    shown += [row for _, row in sorted(best.items()) if row not in shown][:MAX_CORRECT]
    return [_answer(scored, probabilities, names, row) for row in shown]


def _answer(scored: ScoredRows, probabilities: Floats, names: Sequence[str], row: int) -> Mistake:
    """Return one row with its single label and the prediction."""
    likely = np.argsort(-probabilities[row], kind="stable")[:3].tolist()
    true = int(scored.labels[row])
    return Mistake(
        text=shortened(scored.sources[row].text),
        file=scored.sources[row].file,
        row=scored.sources[row].row,
        label=names[true],
        predicted=names[likely[0]],
        label_probability=float(probabilities[row, true]),
        top=_named(probabilities[row], likely, names),
        true_labels=[names[true]],
    )


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
    return [
        _label_answer(scored, probabilities, names, row, int(distance[row].argmax()), predicted[row]) for row in rows
    ]


def label_correct(scored: ScoredRows, probabilities: Floats, names: Sequence[str], thresholds: Floats) -> list[Mistake]:
    """Return multilabel rows whose labels are all predicted right, those closest to a threshold first."""
    predicted = probabilities >= thresholds
    distance = np.abs(probabilities - thresholds)
    right = np.flatnonzero((predicted == scored.labels).all(axis=1))
    shown = right[np.argsort(distance[right].min(axis=1), kind="stable")][:MAX_CORRECT].tolist()
    return [
        _label_answer(scored, probabilities, names, row, int(distance[row].argmin()), predicted[row]) for row in shown
    ]


def _label_answer(
    scored: ScoredRows, probabilities: Floats, names: Sequence[str], row: int, label: int, predicted: Bools
) -> Mistake:
    """Return one row with its labels; `label` is the one that counts as its true and predicted label."""
    true_labels = [names[number] for number in np.flatnonzero(scored.labels[row]).tolist()]
    order = np.argsort(-probabilities[row], kind="stable").tolist()
    likely = [number for number in order if predicted[number] or names[number] in true_labels][:6]
    return Mistake(
        text=shortened(scored.sources[row].text),
        file=scored.sources[row].file,
        row=scored.sources[row].row,
        label=names[label] if scored.labels[row, label] else NO_LABEL,
        predicted=names[label] if predicted[label] else NO_LABEL,
        label_probability=float(probabilities[row, label]),
        top=_named(probabilities[row], likely, names),
        true_labels=true_labels,
    )


def _named(probabilities: Floats, classes: Sequence[int], names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the names and probabilities of classes."""
    return [(names[number], float(probabilities[number])) for number in classes]


def shortened(text: str) -> str:
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
            text=shortened(row["text"]),
            target=shortened(row["target"]),
            output=shortened(output),
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
