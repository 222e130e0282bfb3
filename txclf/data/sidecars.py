"""Sidecars of the shards: a further column of their rows, computed by a network, in files of its own.

    <prepared>/<sidecar>/<split>/part-<key>-<group>.parquet    values of one row group of a shard, in its order

The name of a sidecar has a hash of all that its values depend on, so the files never change and all runs on the
prepared data share them. Each file is written as a whole: an interrupted computation resumes with the missing files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data.shards import GROUP_ROWS, Shard


class RowGroup(NamedTuple):
    """One row group of a shard."""

    shard: Shard
    number: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return min(GROUP_ROWS, self.shard.rows - self.number * GROUP_ROWS)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.shard.group_tokens[self.number]


class Sidecar(BaseModel):
    """A column of `width` numbers per row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Folder within the prepared folder."""
    column: str
    width: int
    splits: tuple[str, ...]
    """Splits whose rows have values; the training rows may include those of other splits."""

    def path(self, prepared: str, group: RowGroup) -> str:
        """Return the path of the values of a row group."""
        return storage.join(prepared, self.name, self._file(group))

    def _file(self, group: RowGroup) -> str:
        return f"{group.shard.file.removesuffix('.parquet')}-{group.number:05d}.parquet"

    def missing(self, prepared: str, shards: Iterable[Shard]) -> list[RowGroup]:
        """Return the row groups of some shards whose values are not stored yet."""
        groups = [RowGroup(shard, number) for shard in shards for number in range(len(shard.group_tokens))]
        stored = {
            f"{split}/{name}"
            for split in {group.shard.split for group in groups}
            for name in storage.list_folder(storage.join(prepared, self.name, split))
        }
        return [group for group in groups if self._file(group) not in stored]

    def write(self, prepared: str, group: RowGroup, values: npt.NDArray[np.float32]) -> None:
        """Store the values (rows, width) of a row group."""
        assert values.shape == (group.rows, self.width), values.shape
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), self.width)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({self.column: column}), sink, compression="zstd", write_page_checksum=True)
        storage.write_bytes(self.path(prepared, group), sink.getvalue())

    def read(self, prepared: str, group: RowGroup) -> pa.ChunkedArray:
        """Return the values of a row group as a column. Raises `DataError` if the file is damaged or missing."""
        path = self.path(prepared, group)
        filesystem, inner = storage.resolve(path)
        try:
            with pq.ParquetFile(inner, filesystem=filesystem, page_checksum_verification=True) as file:
                column = file.read([self.column])[self.column].cast(pa.list_(pa.float32(), self.width))
            if len(column) != group.rows:
                raise ValueError(f"{len(column)} rows instead of {group.rows}")
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            folder = storage.join(prepared, self.name)
            raise DataError(
                f"`{path}`: cannot be read: {error}. Remove `{folder}` and pass --resume to compute it again."
            ) from None
        return column


def values(tables: Iterable[pa.Table], column: str) -> npt.NDArray[np.float32]:
    """Return the column of a sidecar as an array (rows, width)."""
    chunks = [chunk for table in tables for chunk in table[column].chunks if len(chunk)]
    arrays: list[Any] = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks]
    return np.concatenate(arrays) if arrays else np.empty((0, 0), np.float32)
