"""Output files of rows: csv, tsv, jsonl and Parquet, written as chunks that `join` combines into one file.

A csv or tsv chunk has no header, so chunks of all formats except Parquet are joined as bytes. A chunk of Parquet is a
file of Arrow with the types of its own values, and `join` widens them to a common type.

Every value comes back as it is, or as documented text: bytes as base64, nested values in csv and tsv as JSON, and other
types that a format lacks as Python prints them. JSON has no NaN and no infinity, so they become null there.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from txclf.core import storage, strict_json
from txclf.core.errors import ConfigError, DataError, StorageError
from txclf.core.text import shown
from txclf.data import column_types, sources

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


class ColumnTypeError(Exception):
    """Column whose values have no common type that a Parquet file can hold."""

    def __init__(self, column: str, reason: object) -> None:
        super().__init__(column, str(reason))
        self.column, self.reason = column, str(reason)


def chunk_ending(style: str) -> str:
    """Return the file extension of a chunk."""
    return "arrow" if style == "parquet" else style


def encode(style: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, pa.DataType] | None = None) -> bytes:
    """Return rows as a chunk of a file.

    Only Parquet needs `types`; a column that it lacks gets the type of its values. Raises `ColumnTypeError` for values
    that a Parquet column cannot hold unchanged.
    """
    if style == "parquet":
        return _encode_parquet(columns, types or {})
    rows = zip(*columns.values(), strict=True)
    if style == "jsonl":
        names = list(columns)
        return "".join(_json_text(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
    return _cells(style, rows)


def _encode_parquet(columns: Mapping[str, Sequence[Any]], types: Mapping[str, pa.DataType]) -> bytes:
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = column_types.array(values, types.get(name))
            if arrays[name].type not in column_types.PLAIN:  # Parquet lacks some types of Arrow
                schema = pa.schema([(name, column_types.settled(arrays[name].type))])
                pq.ParquetWriter(pa.BufferOutputStream(), schema).close()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise ColumnTypeError(name, error) from None
    table, sink = pa.table(arrays), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _json_text(value: Any) -> str:
    """Return one line of strict JSON. Characters that some readers take for line ends are escaped."""
    text = strict_json.dumps(value, default=_json_value)
    return LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


LINE_ENDS = re.compile("[\x7f\x85\u2028\u2029]")
"""Characters other than JSON's own escapes that `str.splitlines` or a terminal takes for control characters."""
QUOTED = {
    style: re.compile(f'["{delimiter}\\x00-\\x1f\x7f\x85\u2028\u2029\ufeff]|^\\s|\\s$|^$')
    for style, delimiter in (("csv", ","), ("tsv", "\t"))
}
"""Cells that are quoted: an empty text too, so that it differs from null."""


def _json_value(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _cells(style: str, rows: Iterable[Iterable[Any]], is_header: bool = False) -> bytes:
    """Encode rows as csv or tsv. A tsv header is quoted, which tells readers that its cells may have quotes."""
    delimiter, quoted = {"csv": ",", "tsv": "\t"}[style], QUOTED[style]
    always = is_header and style == "tsv"

    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = value if isinstance(value, str) else _cell_text(value)
        return '"' + text.replace('"', '""') + '"' if always or quoted.search(text) else text

    return "".join(delimiter.join(map(cell, row)) + "\n" for row in rows).encode()


def _cell_text(value: object) -> str:
    """Return a value that is no string as text: booleans and nested values as JSON."""
    return _json_text(value) if isinstance(value, bool | list | tuple | dict) else _json_value(value)


class Chunk(NamedTuple):
    """File of encoded rows."""

    path: str
    origin: str
    """Input file of the rows, for errors."""


def join(chunks: Sequence[Chunk], out: str, style: str, codec: str | None, names: Sequence[str]) -> None:
    """Combine chunks into one file, with one chunk in memory. The file appears when it is complete.

    Raises `StorageError` if a chunk cannot be read or the file cannot be written, `DataError` if a Parquet column has
    values of different types.
    """
    with atomic_stream(out, codec) as stream:
        if style == "parquet":
            types = common_types((_read_schema(chunk), chunk.origin) for chunk in chunks)
            _join_parquet(chunks, stream, pa.schema([(name, column_types.settled(types[name])) for name in names]))
            return
        if style in ("csv", "tsv"):
            stream.write(_cells(style, [names], is_header=True))
        for chunk in chunks:
            filesystem, inner = storage.resolve(chunk.path)
            with filesystem.open_input_stream(inner, compression=None) as source:
                while block := source.read(BLOCK_BYTES):
                    stream.write(block)


def common_types(schemas: Iterable[tuple[pa.Schema, str]]) -> dict[str, pa.DataType]:
    """Return the types that hold the values of several files, each given by its schema and its name.

    Raises `DataError` if a column has no such type.
    """
    types: dict[str, pa.DataType] = {}
    previous = None
    for schema, origin in schemas:
        if schema != previous:
            types, previous = widened(types, schema, origin), schema
    return types


def widened(types: Mapping[str, pa.DataType], schema: pa.Schema, origin: str) -> dict[str, pa.DataType]:
    """Return types that hold the values of `types` and of a file. Raises `DataError` if a column has none."""
    wide = dict(types)
    for field in schema:
        kind = column_types.common(wide.get(field.name, pa.null()), field.type)
        if kind is None:
            raise type_error(origin, field.name, f"{field.type} here, but {wide[field.name]} before")
        wide[field.name] = kind
    return wide


def type_error(file: str, column: str, problem: str) -> DataError:
    """Return the error for a column whose values have no common type."""
    return DataError(
        f"`{file}`: column `{shown(column)}`: {shown(problem, 300)}. A Parquet column has one type. "
        "Write .jsonl, which accepts every type, or fix the values."
    )


def _join_parquet(chunks: Iterable[Chunk], stream: Any, schema: pa.Schema) -> None:
    """Write small chunks as larger row groups, which are faster to read."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for chunk in chunks:
            waiting.append(_read_chunk(chunk, schema))
            if sum(table.nbytes for table in waiting) >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
                pa.default_memory_pool().release_unused()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _read_schema(chunk: Chunk) -> pa.Schema:
    filesystem, inner = storage.resolve(chunk.path)
    with filesystem.open_input_file(inner) as file:
        return pa.ipc.open_file(file).schema


def _read_chunk(chunk: Chunk, schema: pa.Schema) -> pa.Table:
    """Read a chunk and convert its columns to the types of a schema. Raises `DataError` for a value that is lost."""
    filesystem, inner = storage.resolve(chunk.path)
    with filesystem.open_input_file(inner) as file:
        table = pa.ipc.open_file(file).read_all()
    columns = []
    for field in schema:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise type_error(chunk.origin, field.name, f"cannot become {field.type}: {error}") from None
    return pa.table(columns, schema=schema)


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
