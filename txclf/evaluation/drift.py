"""Drift: how new texts differ from those that a run was made for, without labels.

    new files ──a random sample──▶ words, probabilities, vectors ──┐
    rows of the run that its model was not trained on ─────────────┴──▶ differences, each with its p-value

Known rows are those of the test and the validation split, because the vectors and probabilities of the rows that a
model was trained on differ from all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from txclf.core import html_table, openmp, storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.text import listed
from txclf.core.words import split
from txclf.data import detect, records, shards, sources, tables
from txclf.evaluation.evaluate import finished
from txclf.evaluation.labelled_files import MAX_SHOWN_REJECTS
from txclf.inference.bundle import Floats
from txclf.inference.classifier import Classifier
from txclf.metrics import drift as metrics
from txclf.ngrams import fitting

RESULT = "drift.json"
MAX_ROWS = 2000
"""Rows of each side that are compared."""
LEVEL = 0.001
"""p-value below which a difference counts."""
MIN_VALUES = {"vectors": 0.6, "labels": 0.1, "lengths": 0.1}
"""Value from which a difference counts: an area under the curve, and shares of rows."""
MIN_UNSEEN = 0.05
"""Additional share of unseen words from which a difference counts."""
TYPICAL_WORDS = 20
MAX_STRANGEST = 10
"""New rows that are listed if the vectors differ: those most unlike known ones."""
MAX_CHARS = 500
"""Characters of such a row."""
BINS = 30
"""Bins of the lengths."""


class Drift(dict[str, Any]):
    """Content of `drift.json`: a mapping that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        found = self["findings"] or ["no drift found"]
        return html_table.table(f"Drift of {self['rows']:,} new rows", [[line] for line in found])


class _Side(NamedTuple):
    """Rows of one side."""

    words: list[list[str]]
    probabilities: Floats
    vectors: Floats


def drift(run_folder: str, data: Any, *, encoding: str | None = None, delimiter: str | None = None) -> Drift:
    """Compare new texts with the rows of a finished run that its model was not trained on; write and return the result.

    `data` are files or a table in memory with the text columns of the run. At most `MAX_ROWS` rows of each side are
    compared, a random sample. `encoding` and `delimiter` of text files are those of the run if not given.

    Raises `ConfigError` if the folder is not a finished run, the run is of `seq2seq` or was trained on all its rows,
    and `DataError` if there is no row.
    """
    folder = storage.absolute(run_folder)
    run, prepared = finished(run_folder)
    if run.task_spec.is_seq2seq:
        raise ConfigError(
            f"`{run_folder}`: a run of `seq2seq` predicts no labels to compare. Pass a run that classifies."
        )
    manifest = shards.load_manifest(prepared)
    splits = [name for name in ("test", "valid") if name in manifest.splits]
    if run.train.train_on_valid:
        splits.remove("valid")
    if not splits:
        raise ConfigError(
            f"`{run_folder}`: the model was trained on all rows of the run, so there is nothing to compare with. "
            "Train with `data.test`, `data.test_fraction` or `train.train_on_valid: false`."
        )
    files = tables.paths(data, run, storage.join(folder, tables.FOLDER), "data", labelled=False)
    encoding = encoding or run.data.encoding
    found = sources.find_sources(files, encoding, delimiter or run.data.delimiter)
    with sources.unchanged(found):
        texts, rows, rejects, skipped = _sample(found, run.data.text)
    if not texts:
        reason = f" The first is row {rejects[0].row:,}: {rejects[0].reason}." if rejects else ""
        advice = detect.advice_for_rows(rejects, encoding) or "Pass files with texts in the run's columns."
        raise DataError(f"{listed(files)}: no usable row.{reason} {advice}")
    classifier = Classifier.load(storage.join(folder, "model"))
    column = run.task_spec.shard_column
    used, known_rows = _known_rows(prepared, manifest, splits, ["input_ids", "text", column])
    new_rows = pa.table({"input_ids": classifier.encode(texts), "text": ["\n".join(text) for text in texts]})
    with openmp.spinning_on_free_cpus():
        known, new = _side(classifier, known_rows), _side(classifier, new_rows)
    vocabulary = _vocabulary(prepared, manifest)
    vectors, scores = metrics.of_vectors(known.vectors, new.vectors)
    result = {
        "data": list(files),
        "rows": rows,
        "skipped": skipped,
        "compared": len(texts),
        "known": used,
        "known_rows": known_rows.num_rows,
        "vectors": vectors._asdict(),
        "labels": _labels(classifier, known, new),
        "lengths": _lengths(known, new),
        "words": {
            "unseen": _unseen(known, new, vocabulary),
            "typical": metrics.typical_words(known.words, new.words, TYPICAL_WORDS),
        },
    }
    if not classifier.is_multilabel:
        result["accuracy"] = _accuracy(known, new, known_rows[column].to_numpy())
    strangest = np.argsort(-scores, kind="stable")[:MAX_STRANGEST].tolist() if _counts("vectors", result) else []
    result["strangest"] = [{"text": " ".join(texts[i])[:MAX_CHARS], "score": float(scores[i])} for i in strangest]
    drift = Drift(result, findings=findings(result))
    storage.write_json_lines(storage.join(folder, RESULT), drift)
    return drift


def findings(result: dict[str, Any]) -> list[str]:
    """Return one sentence for each difference that counts, none if the new rows are as the known ones."""
    said = {
        "vectors": "the network's vectors differ: a linear model tells new from known rows (AUC {value:.2f})",
        "labels": "predicted labels differ: {change}",
        "lengths": "lengths differ: {known_median:g} words for known rows, {new_median:g} for new ones (medians)",
    }
    found = [text.format(**result[name]) for name, text in said.items() if _counts(name, result)]
    unseen = result["words"]["unseen"]
    if unseen["p_value"] < LEVEL and unseen["new"] - unseen["known"] >= MIN_UNSEEN:
        shares = f"{unseen['new']:.0%} are not in the training rows, {unseen['known']:.0%} of known rows"
        found.append(f"words differ: {shares}")
    return found


def _counts(name: str, result: dict[str, Any]) -> bool:
    """Return True if a difference is large and unlikely to be chance."""
    return bool(result[name]["p_value"] < LEVEL and result[name]["value"] >= MIN_VALUES[name])


def _sample(
    found: Sequence[sources.Source], columns: Sequence[str]
) -> tuple[list[tuple[str, ...]], int, list[records.Reject], int]:
    """Return a random sample of the texts, the number of usable rows, the first bad ones, and their number."""
    random = np.random.default_rng(0)
    texts: list[tuple[str, ...]] = []
    keys = np.empty(0)
    rejects: list[records.Reject] = []
    rows = skipped = 0
    for source in found:
        for batch, bad in records.read_rows(source, columns, None):
            rows, skipped = rows + len(batch.texts), skipped + len(bad)
            rejects += bad[: max(0, MAX_SHOWN_REJECTS - len(rejects))]
            texts, keys = texts + batch.texts, np.append(keys, random.random(len(batch.texts)))
            if len(texts) > MAX_ROWS:
                kept = np.sort(np.argpartition(keys, MAX_ROWS)[:MAX_ROWS])
                texts, keys = [texts[i] for i in kept], keys[kept]
    return texts, rows, rejects, skipped


def _known_rows(
    prepared: str, manifest: shards.Manifest, splits: Sequence[str], columns: Sequence[str]
) -> tuple[list[str], pa.Table]:
    """Return rows of the first of some splits, which are a random sample, at most `MAX_ROWS`, and these splits."""
    used, parts, missing = list[str](), list[pa.Table](), MAX_ROWS
    for name in splits:
        if missing:
            parts += shards.first_rows(prepared, manifest, name, columns, missing)
            used.append(name)
            missing = MAX_ROWS - sum(table.num_rows for table in parts)
    return used, pa.concat_tables(parts)


def _side(classifier: Classifier, table: pa.Table) -> _Side:
    rows = classifier.rows([table])
    words = [_words(text) for text in table["text"].to_pylist()]
    return _Side(words, classifier.calibrated(classifier.logits(rows)), classifier.vectors(rows))


def _words(text: str) -> list[str]:
    return [word for word in split(text.lower()) if word[0].isalnum() or word[0] == "_"]


def _vocabulary(prepared: str, manifest: shards.Manifest) -> set[str]:
    """Return the words of the training rows, of a random sample if there are many."""
    parts: Iterator[pa.Table] = shards.first_rows(prepared, manifest, "train", ["text"], fitting.MAX_ROWS)
    return {word for table in parts for text in table["text"].to_pylist() for word in _words(text)}


def _unseen(known: _Side, new: _Side, vocabulary: set[str]) -> dict[str, float]:
    """Return the shares of the words that are not in a vocabulary, and the p-value of their difference."""
    counts = [
        np.array([(sum(word not in vocabulary for word in row), len(row)) for row in side.words])
        for side in (known, new)
    ]
    before, after = (float(unseen / max(1, total)) for unseen, total in (count.sum(axis=0) for count in counts))
    return {"known": before, "new": after, "p_value": metrics.of_unseen(*counts).p_value}


def _labels(classifier: Classifier, known: _Side, new: _Side) -> dict[str, Any]:
    """Return the difference of the predicted labels in numbers and words, and the shares of the rows that have each."""
    if classifier.is_multilabel:
        masks = [side.probabilities >= classifier.thresholds for side in (known, new)]
    else:
        masks = [
            np.eye(len(classifier.labels), dtype=np.bool_)[side.probabilities.argmax(axis=1)] for side in (known, new)
        ]
    before, after = (mask.mean(axis=0) for mask in masks)
    shares = {
        label: {"known": float(before[i]), "new": float(after[i])}
        for i, label in sorted(enumerate(classifier.labels), key=lambda item: -abs(after[item[0]] - before[item[0]]))
    }
    difference = metrics.of_labels(masks[0], masks[1], is_multilabel=classifier.is_multilabel)
    change = f"{difference.value:.0%} of the rows would have to change theirs"
    if classifier.is_multilabel:
        label, share = next(iter(shares.items()))
        change = f"`{label}` for {share['new']:.0%} of the new rows, {share['known']:.0%} of the known ones"
    return {**difference._asdict(), "change": change, "shares": shares}


def _lengths(known: _Side, new: _Side) -> dict[str, Any]:
    """Return the difference of the numbers of words of a row, their medians, and the share of the rows in each bin."""
    before, after = (np.array([len(row) for row in side.words]) for side in (known, new))
    medians = {"known_median": float(np.median(before)), "new_median": float(np.median(after))}
    longest = int(np.percentile(np.concatenate([before, after]), 99)) + 1
    step = -(-longest // BINS)
    starts = np.arange(0, longest, step)  # the last bin has all longer rows too
    shares = {
        name: (np.bincount(np.minimum(lengths // step, len(starts) - 1), minlength=len(starts)) / len(lengths)).tolist()
        for name, lengths in (("known", before), ("new", after))
    }
    return {**metrics.of_lengths(before, after)._asdict(), **medians, "bins": {"starts": starts.tolist(), **shares}}


def _accuracy(known: _Side, new: _Side, labels: Any) -> dict[str, float]:
    """Return the accuracy on known rows, and the one to expect on new ones.

    It changes as the mean probability of the predicted label does (difference of confidences; Guillory et al.,
    arXiv:2107.03315).
    """
    confidence = [float(side.probabilities.max(axis=1).mean()) for side in (known, new)]
    right = float((known.probabilities.argmax(axis=1) == labels).mean())
    expected = float(np.clip(right + confidence[1] - confidence[0], 0.0, 1.0))
    return {"known": right, "expected": expected, "known_confidence": confidence[0], "confidence": confidence[1]}
