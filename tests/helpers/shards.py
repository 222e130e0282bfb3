"""Prepared shards with known rows, of one or several row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.helpers.lengths import lengths_of
from txclf.data import shards
from txclf.data.shards import SCHEMA, SEQ2SEQ_SCHEMA, Shard


def write_shards(folder: Path, sizes: list[int], *, targets: bool = False) -> tuple[Shard, ...]:
    """Write shards of these sizes of a split `train`.

    The first token of a row is its number in the split, its label the number modulo 3.
    """
    written, first = [], 0
    for size in sizes:
        ids = [[first + row, *range(1, length)] for row, length in enumerate(lengths_of(size, seed=first).tolist())]
        columns = {
            "input_ids": ids,
            "label": (np.arange(first, first + size) % 3).astype(np.int32),
            "text": [""] * size,
            "file": [""] * size,
            "row": range(first, first + size),
            "full_length": [len(row) for row in ids],
            "key": np.arange(first, first + size, dtype=np.uint64),
        }
        if targets:
            columns |= {"target_ids": [[*row[:5], 1] for row in ids], "target": [""] * size}
            columns |= {"target_full_length": [0] * size}
        table = pa.table(columns, schema=SEQ2SEQ_SCHEMA if targets else SCHEMA)
        written.append(shards.write_shard(str(folder), "train", table, 3))
        first += size
    return tuple(written)
