"""Rows of Parquet files, with bounds from the metadata before values are unpacked.

A few kB of Parquet can hold gigabytes: one long value compresses well, and repeated values are stored once. So a row
group that is far larger than its bytes in the file is refused, and the rows of one read are chosen by the size of the
dictionaries, which no page of a column exceeds by its values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from txclf.core import storage
from txclf.core.errors import DataError
from txclf.core.text import shown
from txclf.data import raw
from txclf.data.detect import NOT_UTF8
from txclf.data.raw import RawBatch, choose, make_batch
from txclf.data.sources import Source, ending, fault

MAX_PACKED_BYTES = 2**29
"""Maximum size of a compressed Parquet file (`.parquet.gz`) once it is decompressed, which it is in memory."""
MAX_COLUMN_BYTES = 2**27
"""Size of a column of a row group in memory from which on its compression is checked."""
MAX_COMPRESSION = 100
"""Maximum ratio of the size in memory and the size in the file of such a column."""
MAX_READ_BYTES = 2**27
"""Bytes that a single read of rows may unpack, by the metadata."""
MAX_VALUE_BYTES = 2**26
"""Maximum size of a list or another nested value. Longer ones are bad rows."""
PREFIX_ROWS = 16
"""Rows per read of columns whose values share prefixes in the file, so that their size is unknown."""


def read_parquet(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    """Yield the rows of a Parquet file.

    Raises `DataError` for a file that would need far more memory than its size: see the module.
    """
    with fault(source.path, "cannot be read as parquet"):
        filesystem, inner = storage.resolve(source.path)
        stream = filesystem.open_input_file(inner) if ending(inner)[1] is None else _unpacked(source)
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
    with file:
        chosen = choose(source, names, wanted)
        with fault(source.path, "cannot be read as parquet"):
            read_rows = min(batch_rows, _rows_per_read(source, file.metadata, stream, chosen))
        done = 0
        for table in _tables(source, file.iter_batches(read_rows, columns=chosen), batch_rows):
            problems = dict[int, str]()
            columns = {name: _pylist(table.column(name), name, problems) for name in chosen}
            yield make_batch(source, done, table.num_rows, columns, problems, schema=table.schema)
            done += table.num_rows


def _unpacked(source: Source) -> pa.BufferReader:
    content = raw.read_whole(source.path, MAX_PACKED_BYTES)
    if content is None:
        raise DataError(
            f"`{source.path}`: over {MAX_PACKED_BYTES:,} bytes when it is decompressed. Decompress the file, because "
            "Parquet is compressed by itself."
        )
    return pa.BufferReader(content)


def _rows_per_read(source: Source, metadata: Any, stream: pa.NativeFile, names: Sequence[str]) -> int:
    """Return the number of rows that need about `MAX_READ_BYTES` in memory, at least 1.

    Raises `DataError` for a row group whose columns unpack to far more bytes than they have in the file.
    """
    bytes_per_row = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        group_bytes_per_row = 0.0
        for chunk in map(group.column, range(group.num_columns)):
            path = chunk.path_in_schema
            if not any(path == name or path.startswith(f"{name}.") for name in names) or not group.num_rows:
                continue
            width = {"INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}.get(chunk.physical_type, 0)
            size = max(chunk.total_uncompressed_size, chunk.num_values * width if "." in path else 0)
            if size > MAX_COLUMN_BYTES and size > MAX_COMPRESSION * chunk.total_compressed_size:
                raise DataError(
                    f"`{source.path}`: column `{path}` of row group {number + 1:,} needs {size:,} bytes in memory for "
                    f"{chunk.total_compressed_size:,} in the file. Check its values, or write smaller row groups."
                )
            values_per_row = chunk.num_values / group.num_rows
            group_bytes_per_row += max(size / group.num_rows, values_per_row * _dictionary_bytes(chunk, stream))
            if "DELTA_BYTE_ARRAY" in chunk.encodings:
                group_bytes_per_row = max(group_bytes_per_row, MAX_READ_BYTES / PREFIX_ROWS)
        bytes_per_row = max(bytes_per_row, group_bytes_per_row)
    return max(1, math.floor(MAX_READ_BYTES / bytes_per_row))


def _dictionary_bytes(chunk: Any, stream: pa.NativeFile) -> int:
    """Return the size of the dictionary of a column of strings, which no value of it exceeds; 0 for other columns."""
    if not chunk.has_dictionary_page or "BYTE_ARRAY" not in chunk.physical_type:
        return 0
    head = stream.read_at(20, chunk.dictionary_page_offset)
    # The header begins with two numbers of 32 bits in Thrift's compact protocol: kind of the page, uncompressed size.
    numbers, position = list[int](), 0
    while len(numbers) < 2 and head[position : position + 1] == b"\x15":
        value = shift = 0
        position += 1
        while head[position] & 0x80:
            value |= (head[position] & 0x7F) << shift
            position, shift = position + 1, shift + 7
        numbers.append((value | head[position] << shift) >> 1)
        position += 1
    return numbers[1] if len(numbers) == 2 else int(chunk.total_uncompressed_size)


def _tables(source: Source, reads: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.Table]:
    """Yield the rows in tables of `batch_rows` rows, or fewer if they are long."""
    waiting: list[pa.RecordBatch] = []
    done = rows = size = 0
    while True:
        with raw.damage(source, done + rows):
            read = next(reads, None)
        if waiting and (read is None or rows + read.num_rows > batch_rows or size >= raw.MAX_BATCH_CHARS):
            yield pa.Table.from_batches(waiting)
            done, rows, size, waiting = done + rows, 0, 0, []
        if read is None:
            return
        for piece in _pieces(read):
            piece_size = _num_bytes(piece)
            if waiting and size + piece_size > raw.MAX_BATCH_CHARS:
                yield pa.Table.from_batches(waiting)
                done, rows, size, waiting = done + rows, 0, 0, []
            waiting.append(piece)
            rows, size = rows + piece.num_rows, size + piece_size


def _pieces(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Split rows until each piece has at most `raw.MAX_BATCH_CHARS` bytes or a single row."""
    if rows.num_rows <= 1 or _num_bytes(rows) <= raw.MAX_BATCH_CHARS:
        yield rows
        return
    half = rows.num_rows // 2
    yield from _pieces(rows.slice(0, half))
    yield from _pieces(rows.slice(half))


def _num_bytes(rows: pa.RecordBatch) -> int:
    return sum(_decoded_bytes(column) for column in rows.columns)


def _decoded_bytes(column: Any) -> int:
    """Return the size of a column without dictionary encoding."""
    lengths = _lengths(column) if isinstance(column, pa.DictionaryArray) else None
    return int(column.nbytes) if lengths is None else int(pc.sum(lengths).as_py() or 0)


def _lengths(column: Any) -> Any:
    """Return the bytes of each value of a column of strings; None for a column of another type."""
    values = column.dictionary if isinstance(column, pa.DictionaryArray) else column
    if not any(is_kind(values.type) for is_kind in _STRINGS):
        return None
    lengths = pc.binary_length(values)
    return lengths.take(column.indices) if isinstance(column, pa.DictionaryArray) else lengths


_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def _pylist(column: pa.ChunkedArray, name: str, problems: dict[int, str]) -> list[Any]:
    """Return Python values. A value that Python cannot represent, such as a date before the year 1, is a problem."""
    values: list[Any] = []
    for chunk in column.chunks:
        values += _chunk_values(chunk, name, problems, len(values))
    return values


def _chunk_values(column: Any, name: str, problems: dict[int, str], start: int) -> list[Any]:
    long = _long_values(column)
    if long:
        problems |= dict.fromkeys((start + i for i in long), f"`{name}` has over {raw.MAX_CHARS:,} bytes")
        column = pc.if_else(pa.array([i not in long for i in range(len(column))]), column, None)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        values: list[Any] = [None] * len(column)
    for i, scalar in enumerate(column):
        try:
            values[i] = scalar.as_py()
        except UnicodeDecodeError:
            problems[start + i] = NOT_UTF8
        except (ValueError, OverflowError) as error:
            problems[start + i] = f"`{shown(name)}`: {error}"
    return values


def _long_values(column: Any) -> set[int]:
    """Return the positions of values that are too long."""
    lengths = _lengths(column)
    if lengths is not None:
        return set(pc.indices_nonzero(pc.greater(lengths, raw.MAX_CHARS)).to_pylist())
    # Several rows are never that large: see `_pieces`.
    return {0} if len(column) == 1 and pa.types.is_nested(column.type) and column.nbytes > MAX_VALUE_BYTES else set()
