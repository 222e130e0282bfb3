"""Plant wrong labels into data sets, and measure how well `txclf audit` finds them and what correcting them brings.

    python benchmarks/label_errors.py --out RESULTS.json NAME=TRAIN.parquet,TEST.parquet …

The files have the columns `text` and `label`. A fixed share of the training rows gets another label, drawn uniformly.
The probabilities are those of `txclf audit`: out of five folds, by the linear model on n-grams. On the same
probabilities, precision and recall are compared with cleanlab, if that is installed: its default, its filter by the
same rule, and the paper's pruning of the confident joint. Then the linear model is trained with the planted labels,
with the suspects corrected to the suggested labels, with the planted errors among the suspects corrected as a person
would do it, without the suspects, and with the clean labels; all with the setting that the audit chose. They are scored
on the test rows.

The labels that the data sets already had wrong count as false alarms, so precision is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from txclf.auditing import confident, near_duplicates
from txclf.auditing.folds import assign, out_of_fold
from txclf.data import shards
from txclf.ngrams import fitting

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
FILTERS = ("prune_by_noise_rate", "confident_learning", "low_self_confidence")
"""Filters of cleanlab; the first is its default."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", metavar="NAME=TRAIN,TEST")
    parser.add_argument("--share", type=float, default=0.05, help="share of the training rows with a wrong label")
    parser.add_argument("--rows", type=int, help="first rows of each training file to use; all by default")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for argument in options.data:
        name, _, paths = argument.partition("=")
        train, test = paths.split(",")
        results.append({"data": name, **measured(train, test, options)})
        print(json.dumps(results[-1]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=2) + "\n")


def measured(train_file: str, test_file: str, options: argparse.Namespace) -> dict[str, Any]:
    """Plant errors into a data set and return what finds them, and the accuracies."""
    train, test = pq.read_table(train_file), pq.read_table(test_file)
    train = train.slice(0, options.rows)
    names = sorted({str(label) for label in train["label"].to_pylist()})
    numbers = {name: number for number, name in enumerate(names)}
    texts, test_texts = train["text"].to_pylist(), test["text"].to_pylist()
    clean, truth = (np.array([numbers[str(label)] for label in table["label"].to_pylist()]) for table in (train, test))
    draw = np.random.default_rng(options.seed)
    wrong = draw.permutation(len(clean))[: round(options.share * len(clean))]
    given = clean.copy()
    given[wrong] = (clean[wrong] + draw.integers(1, len(names), len(wrong))) % len(names)
    planted = given != clean

    started = time.monotonic()
    normalized = [near_duplicates.normalized(text) for text in texts]
    groups = near_duplicates.groups(normalized)
    folds = assign(shards.text_hashes((text,) for text in normalized), groups, options.folds)
    found = out_of_fold(texts, given, folds, num_labels=len(names))
    suspects = confident.suspects(found.probabilities, given)
    seconds = time.monotonic() - started

    suggested = found.probabilities.argmax(axis=1)
    fits = {
        "planted": (np.ones_like(planted), given),
        "suggested labels": (np.ones_like(planted), np.where(suspects, suggested, given)),
        "suspects reviewed": (np.ones_like(planted), np.where(suspects, clean, given)),
        "suspects left out": (~suspects, given),
        "clean": (np.ones_like(planted), clean),
    }
    own = found.probabilities[np.arange(len(given)), given]
    return {
        "rows": len(texts),
        "labels": len(names),
        "planted": int(planted.sum()),
        "model": found.choice.model.weighting,
        "out_of_fold_accuracy": round(float((suggested == clean).mean()), 4),
        "seconds": round(seconds, 1),
        "txclf": scores(suspects, planted),
        "precision_of_first_100": round(float(planted[np.argsort(own, kind="stable")[:100]].mean()), 4),
        "suggestion_right": round(float((suggested == clean)[suspects & planted].mean()), 4),
        "cleanlab": cleanlab_scores(found.probabilities, given, planted),
        "test_rows": len(truth),
        "test_accuracy": {
            name: accuracy(
                found.choice,
                [text for text, kept in zip(texts, mask, strict=True) if kept],
                labels[mask],
                test_texts,
                truth,
            )
            for name, (mask, labels) in fits.items()
        },
    }


def scores(found: Bools, planted: Bools) -> dict[str, float]:
    """Return precision and recall of the found rows."""
    hits = int((found & planted).sum())
    return {
        "found": int(found.sum()),
        "precision": round(hits / max(1, int(found.sum())), 4),
        "recall": round(hits / max(1, int(planted.sum())), 4),
        "f1": round(2 * hits / max(1, int(found.sum() + planted.sum())), 4),
    }


def cleanlab_scores(probabilities: Any, given: Ints, planted: Bools) -> dict[str, dict[str, float]] | None:
    """Return the scores of cleanlab's filters on the same probabilities; None without cleanlab."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return None
    return {
        name: scores(find_label_issues(given, probabilities, filter_by=name, n_jobs=1), planted) for name in FILTERS
    }


def accuracy(choice: fitting.Choice, texts: list[str], labels: Ints, test_texts: list[str], truth: Ints) -> float:
    """Train the linear model with the setting of the audit and return its accuracy on the test rows."""
    num_labels = choice.model.weights.shape[1]
    model = fitting.refit(choice._replace(train_rows=len(texts)), texts, labels, num_labels=num_labels)
    return round(float((model.logits(test_texts).argmax(axis=1) == truth).mean()), 4)


if __name__ == "__main__":
    main()
