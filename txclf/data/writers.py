"""Output files of rows: csv, tsv, jsonl and Parquet, in parts that `join` makes one file of.

A part of csv or tsv has no header, so parts of all formats but Parquet are joined by their bytes.
"""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from txclf.core import storage
from txclf.core.errors import ConfigError, StorageError
from txclf.data import sources

GROUP_BYTES = 2**24
"""Size in memory of a row group of Parquet."""
BLOCK = 2**20


def style(out: str) -> tuple[str, str | None]:
    """Format and compression of a file by the ending of its name. Raises `ConfigError` for one that is not written."""
    kind, codec = sources.ending(out)
    if kind not in ("csv", "tsv", "jsonl", "parquet") or (codec and kind == "parquet"):
        raise ConfigError(f"`{out}`: end the output in .csv, .tsv or .jsonl (also .gz or .zst), or in .parquet")
    return kind, codec


def infer(columns: dict[str, list[Any]]) -> pa.Schema:
    """Types of columns by their first rows. A column that starts with nulls alone is taken for text."""
    kinds = {name: pa.array(values).type for name, values in columns.items()}
    return pa.schema({name: kind if kind != pa.null() else pa.string() for name, kind in kinds.items()}.items())


def encode(style: str, columns: dict[str, list[Any]], schema: pa.Schema | None) -> bytes:
    """Rows as a part of a file. Only Parquet needs the schema; values that do not fit it are errors of pyarrow."""
    if style == "parquet":
        assert schema is not None
        sink = pa.BufferOutputStream()
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
        return bytes(sink.getvalue())
    rows = zip(*columns.values(), strict=True)
    if style == "jsonl":  # values that JSON lacks (dates, bytes) as text
        names = list(columns)
        lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str) for row in rows)
        return "".join(line + "\n" for line in lines).encode()
    return _cells(style, rows)


def _cells(style: str, rows: Iterable[Iterable[Any]]) -> bytes:
    """csv, or tsv as it is read here: a quote is an ordinary character, but around a cell with tabs or line ends."""
    text = io.StringIO()
    if style == "csv":
        csv.writer(text, lineterminator="\n").writerows(rows)
    else:
        text.writelines("\t".join(map(_tsv_cell, row)) + "\n" for row in rows)
    return text.getvalue().encode()


def _tsv_cell(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r"[\t\r\n]", text) else text


def join(parts: Iterable[str], out: str, style: str, codec: str | None, names: Sequence[str]) -> None:
    """Makes one file of parts (paths) in the memory of one of them. It appears under its name when it is whole.

    Raises `StorageError` when a part cannot be read or the file not be written.
    """
    with whole(out, codec) as stream:
        if style == "parquet":
            _join_parquet(parts, stream)
            return
        if style in ("csv", "tsv"):
            stream.write(_cells(style, [names]))
        for part in parts:
            filesystem, inner = storage.resolve(part)
            with filesystem.open_input_stream(inner, compression=None) as source:
                while block := source.read(BLOCK):
                    stream.write(block)


def _join_parquet(parts: Iterable[str], stream: Any) -> None:
    """Small parts become larger row groups, which are quicker to read."""
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None
    for part in parts:
        filesystem, inner = storage.resolve(part)
        waiting.append(pq.read_table(inner, filesystem=filesystem, partitioning=None))
        writer = writer or pq.ParquetWriter(stream, waiting[0].schema, compression="zstd")
        if sum(table.nbytes for table in waiting) >= GROUP_BYTES:
            writer.write_table(pa.concat_tables(waiting))
            waiting = []
    assert writer is not None
    if waiting:
        writer.write_table(pa.concat_tables(waiting))
    writer.close()


@contextmanager
def whole(out: str, codec: str | None) -> Iterator[Any]:
    """A stream to a file that appears under its name only when the block ends well."""
    filesystem, inner = storage.resolve(out)
    folder, name = inner.rsplit("/", 1)
    part = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        filesystem.create_dir(folder or "/", recursive=True)
        try:
            with filesystem.open_output_stream(part, compression=codec) as stream:
                yield stream
            filesystem.move(part, inner)
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(part)
            raise
    except OSError as error:
        raise StorageError(f"`{out}`: cannot be written: {error.strerror or error}") from error
