"""Sidecars of the shards: stored row group by row group, and read as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from txclf.core.errors import DataError
from txclf.data import sidecars
from txclf.data.shards import GROUP_ROWS, Shard
from txclf.data.sidecars import RowGroup, Sidecar

SIDECAR = Sidecar(name="teacher-1", column="teacher_logits", width=3, splits=("train",))


def shard(name: str, rows: int) -> Shard:
    counts = {"tokens": 0, "full_tokens": 0, "truncated_rows": 0, "label_counts": [], "length_histogram": []}
    groups = -(-rows // GROUP_ROWS)
    return Shard.model_validate({"file": name, "rows": rows, "group_tokens": [1] * groups, **counts})


def test_row_group_of_the_end_has_the_remaining_rows() -> None:
    assert [RowGroup(shard("train/a.parquet", 10_000), number).rows for number in (0, 1)] == [8192, 10_000 - 8192]


def test_missing_names_the_row_groups_without_values(tmp_path: Path) -> None:
    files = [shard("train/a.parquet", 10_000), shard("unlabelled/b.parquet", 5)]
    first, second, third = SIDECAR.missing(str(tmp_path), files)
    assert [(group.shard.split, group.number) for group in (first, second, third)] == [
        ("train", 0),
        ("train", 1),
        ("unlabelled", 0),
    ]
    SIDECAR.write(str(tmp_path), second, np.zeros((second.rows, 3), np.float32))
    assert SIDECAR.missing(str(tmp_path), files) == [first, third]


def test_read_gives_the_written_values(tmp_path: Path) -> None:
    group = RowGroup(shard("train/a.parquet", 6), 0)
    written = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    SIDECAR.write(str(tmp_path), group, written)
    column = SIDECAR.read(str(tmp_path), group)
    table = pa.table({"teacher_logits": column})
    np.testing.assert_array_equal(sidecars.values([table], "teacher_logits"), written)
    parts = [table.slice(2, 3), table.take([0])]
    np.testing.assert_array_equal(sidecars.values(parts, "teacher_logits"), written[[2, 3, 4, 0]])


@pytest.mark.parametrize("content", [b"", b"PAR1 no file", None])
def test_read_names_a_damaged_file(tmp_path: Path, content: bytes | None) -> None:
    group = RowGroup(shard("train/a.parquet", 6), 0)
    if content is not None:
        path = Path(SIDECAR.path(str(tmp_path), group))
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a-00000.parquet`: cannot be read: .* Remove `.*teacher-1` and pass --resume"):
        SIDECAR.read(str(tmp_path), group)


def test_read_refuses_values_of_other_rows(tmp_path: Path) -> None:
    SIDECAR.write(str(tmp_path), RowGroup(shard("train/a.parquet", 6), 0), np.zeros((6, 3), np.float32))
    with pytest.raises(DataError, match="6 rows instead of 7"):
        SIDECAR.read(str(tmp_path), RowGroup(shard("train/a.parquet", 7), 0))
