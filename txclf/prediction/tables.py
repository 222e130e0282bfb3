"""Predictions for a table in memory, in this process: the same table with the columns that a file would have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from txclf.data import tables
from txclf.data.records import RawBatch
from txclf.data.sources import Source
from txclf.inference import bundle
from txclf.prediction.columns import added_columns, load_answer, output_columns
from txclf.prediction.parts import CHUNK_ROWS

_SOURCE = Source("inputs", "parquet")
"""Origin of the rows, for messages."""


def predict_table(
    model: str,
    table: Any,
    probabilities: bool,
    text_columns: Sequence[str] | None,
    on_progress: Callable[[int], None],
    coverage: float | None = None,
) -> Any:
    """Return a table with the predictions of all its rows as more columns; a row without a text has nulls.

    Raises `ConfigError` and `DataError` as the prediction of files does.
    """
    metadata = bundle.read_metadata(model)
    table = tables.opened(table, "inputs")
    first = _batch(0, {name: [None] for name in tables.names(table)})
    columns = output_columns(
        metadata, first, style="parquet", probabilities=probabilities, texts=text_columns, coverage=coverage
    )
    texts = tables.columns(table, columns.texts, "inputs")
    answer = load_answer(model, probabilities=probabilities, lists=True, coverage=coverage)
    parts = [pa.table({name: pa.array([], kind) for name, kind in columns.added.items()})]
    for start in range(0, texts.num_rows, CHUNK_ROWS):
        rows = texts.slice(start, CHUNK_ROWS)
        added, _ = added_columns(answer, _batch(start, rows.to_pydict()), columns)
        parts.append(pa.table({name: pa.array(added[name], kind) for name, kind in columns.added.items()}))
        on_progress(start + rows.num_rows)
    return tables.extended(table, pa.concat_tables(parts))


def _batch(start: int, columns: dict[str, list[Any]]) -> RawBatch:
    count = len(next(iter(columns.values()), []))
    return RawBatch(_SOURCE, list(range(start + 1, start + count + 1)), ["inputs"] * count, columns, {})
