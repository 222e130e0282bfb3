"""Blocks of the reading tasks, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.shards import write_shards
from txclf.core.errors import DataError
from txclf.data import window_blocks
from txclf.data.sampler import WHOLE
from txclf.data.shuffle_windows import ShuffleWindows
from txclf.data.window_reader import TrainReader


@pytest.fixture
def reader(tmp_path: Path) -> TrainReader:
    windows = ShuffleWindows((600,), 32, 5, seed=0)
    columns = ("input_ids", "label")
    return TrainReader(str(tmp_path), write_shards(tmp_path, [600]), columns, WHOLE, windows, 2, False, 0.0)


def test_cut_yields_one_block_of_one_row_per_rank(reader: TrainReader) -> None:
    blocks = list(window_blocks.cut(reader, 3)({"window": np.array([1, 2])}))
    assert [len(block) for block in blocks] == [1] * 6
    for place, block in enumerate(blocks):
        window, rank = 1 + place // 3, place % 3
        number, rows = window_blocks.unpack(block, rank)
        (expected,) = reader.cut(window, reader.read(window), [rank], 3)
        assert number == window
        assert rows.equals(expected)
        assert rows.schema.metadata == expected.schema.metadata


def test_unpack_refuses_the_block_of_another_rank(reader: TrainReader) -> None:
    block = next(window_blocks.cut(reader, 2)({"window": np.array([0])}))
    with pytest.raises(AssertionError, match="another rank"):
        window_blocks.unpack(block, 1)


def test_unpack_raises_the_error_of_a_damaged_shard_on_each_rank(reader: TrainReader) -> None:
    path = Path(reader.folder, reader.shards[0].file)
    path.write_bytes(path.read_bytes()[:-100])
    blocks = list(window_blocks.cut(reader, 2)({"window": np.array([0])}))
    for rank, block in enumerate(blocks):
        with pytest.raises(DataError, match=path.name):
            window_blocks.unpack(block, rank)
    assert len(blocks) == 2


def test_module_imports_neither_torch_nor_ray() -> None:
    program = "import sys, txclf.data.window_blocks; print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
