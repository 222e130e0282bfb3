"""Labelled files other than those of the run, read and tokenized as the run's model needs them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.data import records, sources
from txclf.data.tokenizer import encode_targets
from txclf.data.word_cache import WordCache
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq

MAX_SHOWN_REJECTS = 20
"""Bad rows that an error lists."""


class Rows(NamedTuple):
    """Rows to score, in the columns of the token shards."""

    table: pa.Table
    skipped: int
    """Bad rows that were left out."""


class _Answers(NamedTuple):
    texts: list[tuple[str, ...]]
    """Values of the text columns of each row."""
    answers: list[tuple[str, ...]]
    """Labels of each row, or its target."""
    skipped: int


def read_labels(run: RunConfig, classifier: Classifier, paths: Sequence[str]) -> Rows:
    """Read rows whose labels the classifier knows, as `input_ids`, `text` and `label` or `labels`.

    Raises `DataError` for bad rows, unless the run skips them, and if no row is left.
    """
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    texts, answers, skipped = _read_answers(run, paths, known=numbers)
    if classifier.is_multilabel:
        labels = pa.array([sorted(numbers[label] for label in row) for row in answers], pa.list_(pa.int32()))
    else:
        labels = pa.array([numbers[label] for (label,) in answers], pa.int32())
    columns = {
        "input_ids": classifier.encode(texts),
        run.task_spec.shard_column: labels,
        "text": pa.array(["\n".join(text) for text in texts]),
    }
    return Rows(pa.table(columns), skipped)


def read_targets(run: RunConfig, model: Seq2Seq, paths: Sequence[str]) -> Rows:
    """Read rows with a target text, as `input_ids`, `target_ids` and `target`. Raises `DataError` as `read_labels`."""
    texts, answers, skipped = _read_answers(run, paths)
    targets = [target for (target,) in answers]
    columns = {
        "input_ids": model.encode(texts),
        "target_ids": encode_targets(WordCache(model.target_tokenizer), targets, model.metadata.max_length)[0],
        "target": pa.array(targets),
    }
    return Rows(pa.table(columns), skipped)


def _read_answers(run: RunConfig, paths: Sequence[str], *, known: Collection[str] | None = None) -> _Answers:
    """Return the texts and answers of all usable rows. Rows with an answer outside of `known` are bad."""
    texts: list[tuple[str, ...]] = []
    answers: list[tuple[str, ...]] = []
    rejects: list[records.Reject] = []
    column = getattr(run.data, run.task_spec.answer_key)
    delimiter = run.data.label_delimiter if run.task_spec.is_multilabel else None
    for source in sources.find_sources(paths):
        for rows, bad in records.read_rows(source, run.data.text, column, label_delimiter=delimiter):
            rejects += bad
            row_answers = rows.label_sets or [(label,) for label in rows.labels]
            for text, answer, file, row in zip(rows.texts, row_answers, rows.files, rows.rows, strict=True):
                unknown = [] if known is None else [label for label in answer if label not in known]
                if unknown:
                    rejects.append(records.Reject(file, row, f"label `{unknown[0]}` is not one of the model's"))
                else:
                    texts.append(text)
                    answers.append(answer)
    if rejects and run.data.on_bad_row == "fail":
        shown = "\n".join(
            f"  {reject.file}: row {reject.row:,}: {reject.reason}" for reject in rejects[:MAX_SHOWN_REJECTS]
        )
        raise DataError(
            f"`{', '.join(paths)}`: {len(rejects):,} bad row(s) and the run has `data.on_bad_row: fail`. "
            f"Fix these rows, the first of them:\n{shown}"
        )
    if not texts:
        raise DataError(f"`{', '.join(paths)}`: no usable row. Pass files with labelled rows.")
    return _Answers(texts, answers, len(rejects))
