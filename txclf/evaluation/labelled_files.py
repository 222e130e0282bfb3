"""Labelled files other than those of the run, read in chunks and tokenized as the run's model needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.core.text import listed, shown
from txclf.data import detect, records
from txclf.data.records import Reject
from txclf.data.sources import Source
from txclf.data.tokenizer import encode_targets
from txclf.data.word_cache import WordCache
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq

MAX_SHOWN_REJECTS = 20
"""Bad rows that an error lists."""


class Answers(NamedTuple):
    """Usable rows of a chunk of a file, and its bad rows."""

    texts: list[tuple[str, ...]]
    """Values of the text columns of each row."""
    answers: list[tuple[str, ...]]
    """Labels of each row, or its target."""
    rejects: list[Reject]


def read_answers(run: RunConfig, source: Source, known: Collection[str] | None = None) -> Iterator[Answers]:
    """Yield the chunks of a file. Rows with an answer outside of `known` are bad, if that is given."""
    column = getattr(run.data, run.task_spec.answer_key)
    delimiter = run.data.label_delimiter if run.task_spec.is_multilabel else None
    for rows, bad in records.read_rows(source, run.data.text, column, label_delimiter=delimiter):
        chunk = Answers([], [], list(bad))
        row_answers = rows.label_sets or [(label,) for label in rows.labels]
        for text, answer, file, row in zip(rows.texts, row_answers, rows.files, rows.rows, strict=True):
            unknown = [] if known is None else [label for label in answer if label not in known]
            if unknown:
                chunk.rejects.append(Reject(file, row, f"label `{shown(unknown[0])}` is not one of the model's"))
            else:
                chunk.texts.append(text)
                chunk.answers.append(answer)
        yield chunk


def label_table(run: RunConfig, classifier: Classifier, chunk: Answers) -> pa.Table:
    """Return the rows of a chunk as `input_ids`, `text` and `label` or `labels`."""
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    if classifier.is_multilabel:
        labels = pa.array([sorted(numbers[label] for label in row) for row in chunk.answers], pa.list_(pa.int32()))
    else:
        labels = pa.array([numbers[label] for (label,) in chunk.answers], pa.int32())
    columns = {
        "input_ids": classifier.encode(chunk.texts),
        run.task_spec.shard_column: labels,
        "text": pa.array(["\n".join(text) for text in chunk.texts], pa.string()),
    }
    return pa.table(columns)


def target_table(model: Seq2Seq, chunk: Answers) -> pa.Table:
    """Return the rows of a chunk as `input_ids`, `target_ids` and `target`."""
    targets = [target for (target,) in chunk.answers]
    columns = {
        "input_ids": model.encode(chunk.texts),
        "target_ids": encode_targets(WordCache(model.target_tokenizer), targets, model.metadata.max_length)[0],
        "target": pa.array(targets, pa.string()),
    }
    return pa.table(columns)


def require_usable(run: RunConfig, paths: Sequence[str], rows: int, rejects: Sequence[Reject]) -> None:
    """Raise `DataError` if there are bad rows that the run does not skip, or no row."""
    if rejects and run.data.on_bad_row == "fail":
        shown = "\n".join(
            f"  {reject.file}: row {reject.row:,}: {reject.reason}" for reject in rejects[:MAX_SHOWN_REJECTS]
        )
        raise DataError(
            f"{listed(paths)}: {len(rejects):,} bad row(s) and the run has `data.on_bad_row: fail`. "
            f"{detect.advice_for_rows(rejects, run.data.encoding) or 'Fix these rows, the first of them:'}\n{shown}"
        )
    if not rows:
        raise DataError(f"{listed(paths)}: no usable row. Pass files with labelled rows.")
