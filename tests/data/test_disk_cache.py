"""Rows on disk give the same batches as rows in memory, and leave no files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from txclf.core.errors import DataError, StorageError
from txclf.data.batches import TokenRows
from txclf.data.disk_cache import spooled

COLUMNS = ("input_ids", "label")


def tables(count: int = 5) -> Iterator[pa.Table]:
    draw = np.random.default_rng(0)
    for _ in range(count):
        lists = [draw.integers(0, 1000, draw.integers(1, 40)).astype(np.int32) for _ in range(200)]
        labels = draw.integers(0, 4, 200).astype(np.int32)
        yield pa.table({"input_ids": pa.array(lists, pa.list_(pa.int32())), "label": labels})


@pytest.mark.parametrize("token_dropout", [0.0, 0.3])
def test_spooled_batches_equal_those_from_memory(tmp_path: Path, token_dropout: float) -> None:
    memory = TokenRows(list(tables()))
    disk = spooled(tables, str(tmp_path / "spool"), len(memory.values), COLUMNS)
    assert isinstance(disk, TokenRows)
    assert not (tmp_path / "spool").exists()
    assert np.array_equal(disk.lengths, memory.lengths)
    for step in range(20):
        rows = np.random.default_rng(step).permutation(1000)[:64]
        one, two = memory.batch(rows, token_dropout, step), disk.batch(rows, token_dropout, step)
        assert torch.equal(one["input_ids"], two["input_ids"])
        assert torch.equal(one["labels"], two["labels"])
        assert one["num_tokens"] == two["num_tokens"]
        if one["mask"] is not None and two["mask"] is not None:
            assert torch.equal(one["mask"], two["mask"])


def test_spooled_first_process_writes_and_the_others_read(tmp_path: Path) -> None:
    folder, order = str(tmp_path / "spool"), list[str]()

    def other() -> None:
        order.append("met")
        if len(order) == 1:
            order.append(str(len(spooled(tables, folder, 0, COLUMNS, first=False))))

    assert len(spooled(tables, folder, 0, COLUMNS, barrier=other)) == 1000
    assert order == ["met", "1000", "met"]


def test_spooled_read_error_leaves_no_file(tmp_path: Path) -> None:
    def damaged() -> Iterator[pa.Table]:
        yield from tables(2)
        raise DataError("part-2 cannot be read")

    with pytest.raises(DataError, match="part-2"):
        spooled(damaged, str(tmp_path / "spool"), 10, COLUMNS)
    assert not (tmp_path / "spool").exists()


def test_spooled_full_disk_is_refused_before_writing(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(StorageError, match=r"GB free, but the tokens take .* Set TMPDIR"):
        spooled(tables, str(tmp_path / "spool"), free, COLUMNS)


def test_spooled_rows_close_their_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    rows = spooled(tables, str(tmp_path / "spool"), 0, COLUMNS)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del rows
    assert len(os.listdir("/proc/self/fd")) == before
