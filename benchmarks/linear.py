"""Score the strongest linear classifier on the rows of a run: the score that a fine-tuned model has to beat.

    .venv/bin/python benchmarks/linear.py RUN.yaml [key=value …]

The rows are split as `txclf train` splits them. The features are TF-IDF of words and word pairs, and of 2 to 5
characters within words. A linear SVM and a logistic regression are trained for each C, and the best on the validation
rows is scored once on the test rows, as trained on the training rows and on training and validation rows together
(`refit`). Of `task: multilabel`, each label has a classifier of its own, the mean average precision chooses C, and the
thresholds are those that txclf would choose on the validation rows; there is no refit.

Prints a line for each candidate, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import hstack, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from txclf.config import run_config
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.metrics import multilabel, thresholds

SPLITS = ("train", "valid", "test")
Bools = npt.NDArray[np.bool_]


def features(texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return the features of each split (rows, n-grams), as known from the training rows."""
    options: dict[str, Any] = {"sublinear_tf": True, "min_df": 2, "dtype": np.float32}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **options).fit(texts["train"])
    characters = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", **options).fit(texts["train"])
    return {
        split: hstack([words.transform(rows), characters.transform(rows)], format="csr")
        for split, rows in texts.items()
    }


def classifier(kind: str, cost: float) -> Any:
    if kind == "svm":
        return LinearSVC(C=cost, random_state=0)
    # One for each class, as the SVM.
    return OneVsRestClassifier(LogisticRegression(C=cost, solver="liblinear", random_state=0))


def targets(table: pa.Table, classes: int) -> Bools:
    """Return which row has which label (rows, classes)."""
    found = np.zeros((len(table), classes), np.bool_)
    for row, labels in enumerate(table["labels"].to_pylist()):
        found[row, labels] = True
    return found


def single_label(
    found: dict[str, Any], tables: dict[str, pa.Table], candidates: list[tuple[str, float]]
) -> dict[str, Any]:
    labels = {split: table["label"].to_numpy() for split, table in tables.items()}

    def accuracy(model: Any, split: str) -> float:
        return float((model.predict(found[split]) == labels[split]).mean())

    best: tuple[float, Any, dict[str, Any]] = (-1.0, None, {})
    for kind, cost in candidates:
        model = classifier(kind, cost).fit(found["train"], labels["train"])
        score = accuracy(model, "valid")
        print(f"{kind:10} C {cost:<5g} valid accuracy {score:.4f}", flush=True)
        if score > best[0]:
            best = score, model, {"model": kind, "C": cost, "valid_accuracy": score}
    settings = best[2]
    both = np.concatenate([labels["train"], labels["valid"]])
    refit = classifier(settings["model"], settings["C"]).fit(vstack([found["train"], found["valid"]]), both)
    return {**settings, "test_accuracy": accuracy(best[1], "test"), "refit_test_accuracy": accuracy(refit, "test")}


def label_sets(
    found: dict[str, Any], tables: dict[str, pa.Table], candidates: list[tuple[str, float]], classes: int
) -> dict[str, Any]:
    sets = {split: targets(table, classes) for split, table in tables.items()}
    best: tuple[float, Any, dict[str, Any]] = (-1.0, None, {})
    for kind, cost in candidates:
        scores = {split: np.empty(sets[split].shape, np.float32) for split in ("valid", "test")}
        for label in range(classes):
            model = classifier(kind, cost).fit(found["train"], sets["train"][:, label])
            for split, columns in scores.items():
                columns[:, label] = model.decision_function(found[split])
        columns = zip(scores["valid"].T, sets["valid"].T, strict=True)
        score = float(np.mean([multilabel.average_precision(*column) for column in columns]))
        print(f"{kind:10} C {cost:<5g} valid mean average precision {score:.4f}", flush=True)
        if score > best[0]:
            best = score, scores, {"model": kind, "C": cost, "valid_map": score}
    scores = best[1]
    limits = np.array(thresholds.choose(scores["valid"], sets["valid"]))
    predicted = 1 / (1 + np.exp(-scores["test"].astype(np.float64))) >= limits
    tested = multilabel.short_scores(predicted, sets["test"])
    return {**best[2], **{f"test_{name}": value for name, value in tested.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--kinds", default="svm,logistic")
    parser.add_argument("--costs", default="0.1,0.3,1,3,10,30", help="values of C")
    chosen = parser.parse_intermixed_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    candidates = [(kind, float(cost)) for kind in chosen.kinds.split(",") for cost in chosen.costs.split(",")]
    with tempfile.TemporaryDirectory(prefix="txclf-linear-") as scratch:
        # No tokenizer of a pretrained model: the texts are all that counts here.
        run = run_config.load(chosen.run_file, [*chosen.words, "model={}", "tokenizer={}", f"storage={scratch}"])
        folder = prepare(run)
        manifest = shards.load_manifest(folder)
        answer = "labels" if run.task_spec.is_multilabel else "label"
        tables = {split: shards.read_split(folder, manifest, split, ["text", answer]) for split in SPLITS}
    start = time.monotonic()
    found = features({split: table["text"].to_pylist() for split, table in tables.items()})
    print(f"{found['train'].shape[1]:,} n-grams of {len(tables['train']):,} rows", flush=True)
    if run.task_spec.is_multilabel:
        result = label_sets(found, tables, candidates, len(manifest.labels))
    else:
        result = single_label(found, tables, candidates)
    print(json.dumps({"run": run.name, **result, "seconds": round(time.monotonic() - start, 1)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
