"""What a run's model says of a split, made small enough for a page.

A page holds no row more than it shows: curves are thinned, the confusion matrix is a list of its cells that are not
zero, and the texts are those of the worst mistakes. How many rows are scored, and for how long, is bounded.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.labels import LabelSets
from txclf.evaluation import baselines as baseline
from txclf.inference.classifier import Classifier, sigmoid, softmax
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import multiclass, multilabel

POINTS = 80
"""Of a curve."""
CLASSES = 100
"""Most classes with curves of their own: those with the most rows."""
MICRO_CELLS = 500_000
"""Most probabilities that the curve over all classes together is made of."""
MISTAKES = 200
MORE_MISTAKES = 600
"""With the worst of each pair of classes that is not among them yet."""
TEXT_CHARS = 700
EXAMPLES = 40
PART_ROWS = 512
"""Rows between two looks at the clock."""

NOT = "not given"
"""In place of a label that a row has and the model does not give, or the other way round."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Budget(NamedTuple):
    """What a report may cost."""

    rows: int
    """Most rows of a split that are scored."""
    seconds: float
    """After which no further rows are scored."""
    baseline_rows: int
    """Most training rows that the baseline learns from."""


QUICK = Budget(5_000, 15.0, 20_000)
"""At the end of a run."""
FULL = Budget(50_000, 600.0, baseline.MAX_ROWS)
"""When asked for."""


class Scored(NamedTuple):
    """Rows of a split as the bundle scores them."""

    rows: int
    """Of the whole split."""
    logits: Floats
    """(N, C)."""
    labels: Any
    """(N,); of a model that may give several, whether a row has each (N, C)."""
    places: list[dict[str, Any]]
    """`text`, `file` and `row` of each."""


def score(classifier: Classifier, prepared: str, manifest: shards.Manifest, split: str, budget: Budget) -> Scored:
    """Scores the first rows of a split, which are a random sample, within the budget; at least `PART_ROWS`."""
    started, logits, labels, places = time.monotonic(), list[Floats](), list[Any](), list[dict[str, Any]]()
    column = "labels" if classifier.is_multilabel else "label"
    for table in _parts(prepared, manifest, split, ["input_ids", column, "text", "file", "row"]):
        table = table.slice(0, max(0, budget.rows - len(places)))
        logits.append(classifier.logits(classifier.rows([table])))
        if classifier.is_multilabel:
            labels.append(LabelSets.from_tables([table]).matrix(len(classifier.labels)))
        else:
            labels.append(table["label"].to_numpy().astype(np.int64))
        places += table.select(["text", "file", "row"]).to_pylist()
        if len(places) >= budget.rows or time.monotonic() - started > budget.seconds:
            break
    return Scored(manifest.splits[split].rows, np.concatenate(logits), np.concatenate(labels), places)


def _parts(prepared: str, manifest: shards.Manifest, split: str, columns: Sequence[str]) -> Iterator[Any]:
    for shard in manifest.splits[split].shards:
        for group in shards.read_groups(prepared, shard, columns):
            for start in range(0, group.num_rows, PART_ROWS):
                yield group.slice(start, PART_ROWS)


def details(scored: Scored, classifier: Classifier) -> dict[str, Any]:
    """Metrics, classes, confusions, calibration, curves and mistakes of scored rows."""
    names, probabilities = classifier.labels, classifier.calibrated(scored.logits)
    shown: dict[str, Any] = {"rows": len(scored.labels), "of": scored.rows, "labels": names}
    plain = sigmoid(scored.logits) if classifier.is_multilabel else softmax(scored.logits)
    if classifier.is_multilabel:
        found = multilabel.scores(probabilities, scored.labels, classifier.thresholds, names)
        truth, bins = scored.labels, [(one.ravel(), scored.labels.ravel()) for one in (probabilities, plain)]
        wrong = missed(scored, probabilities, classifier)
    else:
        found = multiclass.scores(probabilities, scored.labels, names)
        cells = np.asarray(found.pop("confusion"))
        true, guessed = np.nonzero(cells)
        shown["confusion"] = [[int(i), int(j), int(cells[i, j])] for i, j in zip(true, guessed, strict=True)]
        truth = scored.labels[:, None] == np.arange(len(names))
        bins = [(one.max(axis=1), one.argmax(axis=1) == scored.labels) for one in (probabilities, plain)]
        wrong = mistakes(scored, probabilities, names)
    return {
        **shown,
        "per_class": found.pop("per_class"),
        "metrics": found,
        "reliability": reliability(*bins[0]),
        "uncalibrated": reliability(*bins[1]) if classifier.temperature != 1.0 else None,
        "curves": curves(probabilities, truth),
        "mistakes": wrong,
    }


def reliability(confidence: Floats, right: npt.NDArray[np.bool_], bins: int = 15) -> list[list[float]]:
    """Mean confidence, share of right ones and count of each bin of equal width that has any."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = [places == number for number in np.unique(places)]
    return [[float(confidence[part].mean()), float(right[part].mean()), int(part.sum())] for part in inside]


def curves(probabilities: Floats, truth: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """ROC and precision-recall, one class against the rest: all together first (`class` -1), then the largest ones."""
    classes = probabilities.shape[1]
    sample = slice(max(1, MICRO_CELLS // classes))
    found = [{"class": -1, **curve(probabilities[sample].ravel(), truth[sample].ravel())}]
    support = truth.sum(axis=0)
    largest = [number for number in np.argsort(-support, kind="stable")[:CLASSES].tolist() if support[number]]
    found += [
        {"class": number, **curve(probabilities[:, number], truth[:, number])}
        for number in largest
        if support[number] < len(truth)
    ]
    return found


def curve(scores: Floats, truth: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Both curves of scores against what is true, at most `POINTS` points each, and the areas of the whole ones."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    wrong, right, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    return {
        "fpr": _thin(wrong, right)[0],
        "tpr": _thin(wrong, right)[1],
        "auc": float(auc(wrong, right)),
        "recall": _thin(recall, precision)[0],
        "precision": _thin(recall, precision)[1],
        "ap": float(average_precision_score(truth, scores)),
    }


def _thin(x: Any, y: Any) -> tuple[list[float], list[float]]:
    """Points evenly spaced along the curve, its ends among them."""
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    places = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS)).clip(0, len(x) - 1))
    places = np.unique(np.concatenate([[0], places, [len(x) - 1]]))
    return np.round(x[places], 4).tolist(), np.round(y[places], 4).tolist()


def mistakes(scored: Scored, probabilities: Floats, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows whose label the model finds least likely, worst first; then the worst of each other pair of classes."""
    predicted = probabilities.argmax(axis=1)
    chosen = probabilities[np.arange(len(predicted)), scored.labels]
    wrong = np.flatnonzero(predicted != scored.labels)
    worst = wrong[np.argsort(chosen[wrong], kind="stable")].tolist()
    shown = worst[:MISTAKES]
    pairs = {(scored.labels[row], predicted[row]) for row in shown}
    for row in worst[MISTAKES:]:
        pair = (scored.labels[row], predicted[row])
        if pair not in pairs and len(shown) < MORE_MISTAKES:
            pairs.add(pair)
            shown.append(row)
    return [
        {
            "text": _cut(scored.places[row]["text"]),
            "file": scored.places[row]["file"],
            "row": scored.places[row]["row"],
            "label": names[scored.labels[row]],
            "predicted": names[predicted[row]],
            "label_probability": float(chosen[row]),
            "top": [
                (names[number], float(probabilities[row, number]))
                for number in np.argsort(-probabilities[row], kind="stable")[:3].tolist()
            ],
        }
        for row in shown
    ]


def missed(scored: Scored, probabilities: Floats, classifier: Classifier) -> list[dict[str, Any]]:
    """Labels that rows have and are not given, or are given and have not, where the model is surest; at most
    `MISTAKES`, of each row the worst."""
    given = probabilities >= classifier.thresholds
    # How far beyond its threshold a label is, as a share of the way that there is.
    room = np.where(given, 1 - classifier.thresholds, classifier.thresholds).clip(1e-6)
    far = np.where(given != scored.labels, np.abs(probabilities - classifier.thresholds) / room, -1.0)
    worst = far.max(axis=1)
    rows = [row for row in np.argsort(-worst, kind="stable")[:MISTAKES].tolist() if worst[row] >= 0]
    names, shown = classifier.labels, []
    for row in rows:
        place = int(far[row].argmax())
        has = [names[number] for number in np.flatnonzero(scored.labels[row])]
        order = np.argsort(-probabilities[row], kind="stable").tolist()
        likely = [number for number in order if given[row, number] or names[number] in has][:6]
        shown.append(
            {
                "text": _cut(scored.places[row]["text"]),
                "file": scored.places[row]["file"],
                "row": scored.places[row]["row"],
                "label": NOT if given[row, place] else names[place],
                "predicted": names[place] if given[row, place] else NOT,
                "label_probability": float(probabilities[row, place]),
                "top": [(names[number], float(probabilities[row, number])) for number in likely],
                "has": has,
            }
        )
    return shown


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS else text[:TEXT_CHARS] + " …"


def baselines(
    scored: Scored, prepared: str, manifest: shards.Manifest, lowercase: bool, budget: Budget
) -> dict[str, Any]:
    """The majority class and the n-gram logistic regression on the same rows, by the names of `metrics.json`."""
    classes = len(manifest.labels)
    texts, labels = list[str](), list[Ints]()
    for part in _parts(prepared, manifest, "train", ["label", "text"]):
        texts += part["text"].to_pylist()
        labels.append(part["label"].to_numpy().astype(np.int64))
        if len(texts) >= budget.baseline_rows:
            break
    known = np.concatenate(labels)[: budget.baseline_rows]
    texts = texts[: budget.baseline_rows]
    most = baseline.majority(known, len(scored.labels))
    linear = baseline.logistic_regression(texts, known, [place["text"] for place in scored.places], lowercase)
    return {
        "majority": multiclass.short_scores(most, scored.labels, classes),
        "baseline": {
            **multiclass.short_scores(linear.predictions, scored.labels, classes),
            "train_rows": linear.train_rows,
            "of_train_rows": manifest.splits["train"].rows,
        },
    }


def examples(model: Seq2Seq, prepared: str, manifest: shards.Manifest, split: str) -> dict[str, Any]:
    """What a `seq2seq` model makes of the first rows of a split."""
    columns = ["input_ids", "text", "target", "file", "row"]
    table = next(iter(_parts(prepared, manifest, split, columns))).slice(0, EXAMPLES)
    outputs = model.generate(TokenRows([table]))
    places = table.select(columns[1:]).to_pylist()
    return {
        "rows": len(outputs),
        "of": manifest.splits[split].rows,
        "examples": [
            {
                "text": _cut(place["text"]),
                "target": _cut(place["target"]),
                "output": _cut(output),
                "right": output.split() == place["target"].split(),
                "file": place["file"],
                "row": place["row"],
            }
            for place, output in zip(places, outputs, strict=True)
        ],
    }
