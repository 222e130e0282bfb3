"""Output files of rows: csv, tsv, jsonl and Parquet, written as chunks that `join` combines into one file.

A csv or tsv chunk has no header, so chunks of all formats except Parquet are joined as bytes.
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
from pyarrow import fs as pafs

from txclf.core import storage
from txclf.core.errors import ConfigError, StorageError
from txclf.data import sources

GROUP_BYTES = 2**24
"""Size of a Parquet row group in memory."""
BLOCK_BYTES = 2**20
COPY_BYTES = 5 * 10**9
"""Size of the largest object that S3 copies by itself. Uploads have no such limit, because pyarrow sends parts."""


def style(out: str) -> tuple[str, str | None]:
    """Return format and compression from the file extension. Raises `ConfigError` for one that cannot be written."""
    kind, codec = sources.ending(out)
    if kind not in ("csv", "tsv", "jsonl", "parquet") or (codec and kind == "parquet"):
        raise ConfigError(
            f"`{out}`: not a format that can be written. Use .csv, .tsv or .jsonl (also with .gz or .zst), or .parquet."
        )
    return kind, codec


def infer(columns: dict[str, list[Any]]) -> pa.Schema:
    """Return the types of columns from their first rows. A column with only nulls there counts as text."""
    kinds = {name: pa.array(values).type for name, values in columns.items()}
    return pa.schema({name: kind if kind != pa.null() else pa.string() for name, kind in kinds.items()}.items())


def encode(style: str, columns: dict[str, list[Any]], schema: pa.Schema | None) -> bytes:
    """Return rows as a chunk of a file.

    Only Parquet needs the schema. Raises an error of pyarrow for values that do not fit it.
    """
    if style == "parquet":
        assert schema is not None
        sink = pa.BufferOutputStream()
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
        return bytes(sink.getvalue())
    rows = zip(*columns.values(), strict=True)
    if style == "jsonl":  # values that JSON lacks (dates, bytes) become text
        names = list(columns)
        lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str) for row in rows)
        return "".join(line + "\n" for line in lines).encode()
    return _cells(style, rows)


def _cells(style: str, rows: Iterable[Iterable[Any]]) -> bytes:
    """Encode rows as csv or tsv. In tsv, only cells with tabs or line ends are quoted."""
    text = io.StringIO()
    if style == "csv":
        csv.writer(text, lineterminator="\n").writerows(rows)
    else:
        text.writelines("\t".join(map(_tsv_cell, row)) + "\n" for row in rows)
    return text.getvalue().encode()


def _tsv_cell(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r"[\t\r\n]", text) else text


def join(chunks: Iterable[str], out: str, style: str, codec: str | None, names: Sequence[str]) -> None:
    """Combine chunks (paths) into one file, with one chunk in memory. The file appears when it is complete.

    Raises `StorageError` if a chunk cannot be read or the file cannot be written.
    """
    with atomic_stream(out, codec) as stream:
        if style == "parquet":
            _join_parquet(chunks, stream)
            return
        if style in ("csv", "tsv"):
            stream.write(_cells(style, [names]))
        for chunk in chunks:
            filesystem, inner = storage.resolve(chunk)
            with filesystem.open_input_stream(inner, compression=None) as source:
                while block := source.read(BLOCK_BYTES):
                    stream.write(block)


def _join_parquet(chunks: Iterable[str], stream: Any) -> None:
    """Write small chunks as larger row groups, which are faster to read."""
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None
    for chunk in chunks:
        filesystem, inner = storage.resolve(chunk)
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
def atomic_stream(out: str, codec: str | None) -> Iterator[Any]:
    """Open a stream to a file that appears under its name only if the block succeeds."""
    filesystem, inner = storage.resolve(out)
    folder, name = inner.rsplit("/", 1)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        filesystem.create_dir(folder or "/", recursive=True)
        try:
            with filesystem.open_output_stream(temporary, compression=codec) as stream:
                yield stream
            _move(filesystem, temporary, inner)
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(temporary)
            raise
    except OSError as error:
        raise StorageError(
            f"`{out}`: cannot be written: {error.strerror or error}. Check the folder and the disk."
        ) from error


def _move(filesystem: pafs.FileSystem, source: str, target: str) -> None:
    """Move a file within a file system. A large object is sent through this process in parts."""
    if isinstance(filesystem, pafs.LocalFileSystem) or filesystem.get_file_info(source).size <= COPY_BYTES:
        filesystem.move(source, target)
        return
    try:
        with (
            filesystem.open_input_stream(source, compression=None) as whole,
            filesystem.open_output_stream(target, compression=None) as stream,
        ):
            while block := whole.read(BLOCK_BYTES):
                stream.write(block)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(target)  # closing the stream completed it with what it had
        raise
    filesystem.delete_file(source)
