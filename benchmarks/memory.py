"""Measure the peak memory of a training process on 1x, 3x and 10x data, in memory and streamed from disk.

    .venv/bin/python benchmarks/memory.py [rows of 1x]

Makes texts of random words, about 40 tokens each, prepares them, and trains 100 steps in one process per figure.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from txclf.config import run_config
from txclf.data.prepare import prepare
from txclf.training.progress import Interrupted
from txclf.training.train import train

SMALL = [
    "tokenizer.kind=word",
    "tokenizer.vocab_size=2000",
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.intermediate_size=32",
]


def write(path: Path, rows: int) -> None:
    """Write a Parquet file of texts of random words with random labels."""
    draw = np.random.default_rng(rows)
    words = np.array([f"word{number}" for number in range(1500)])
    writer = None
    for start in range(0, rows, 20_000):
        count = min(20_000, rows - start)
        texts = [" ".join(words[draw.integers(0, 1500, length)]) for length in draw.integers(20, 60, count)]
        table = pa.table({"text": texts, "label": draw.integers(0, 2, count).astype(str)})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer
    writer.close()


def peak(folder: str, data: str, name: str, ingest: str) -> None:
    """Train 100 steps in this process and print its peak resident memory in MB."""
    words = [f"storage={folder}", f"data.train={data}", f"name={name}", f"data.ingest={ingest}", *SMALL]
    run = run_config.load(None, words)
    with suppress(Interrupted):
        train(run, prepare(run), lambda progress: progress.step >= 100)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    if len(sys.argv) == 3:  # a process of its own, so that its memory is not counted
        prepare(run_config.load(None, [f"storage={sys.argv[1]}", f"data.train={sys.argv[2]}", *SMALL]))
        return
    if len(sys.argv) == 5:
        peak(*sys.argv[1:])
        return
    base = int(sys.argv[1]) if len(sys.argv) > 1 else 150_000
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'rows':>10} {'in memory':>12} {'streamed':>12}   peak resident MB")
        for times in (1, 3, 10):
            data = Path(folder, f"{times}.parquet")
            write(data, times * base)
            subprocess.run([sys.executable, __file__, folder, str(data)], check=True)
            figures = []
            for ingest in ("memory", "stream"):
                words = [sys.executable, __file__, folder, str(data), f"{times}-{ingest}", ingest]
                figures.append(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
            print(f"{times * base:>10,} {figures[0]:>12} {figures[1]:>12}", flush=True)


if __name__ == "__main__":
    main()
