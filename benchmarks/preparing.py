"""Measure one sample of tokenizing speed: tokens per second on all cores.

    .venv/bin/python benchmarks/preparing.py VARIANT RUN.yaml [key=value …] [--copies N]

Prints one line of JSON. The variants:

    txclf       `txclf prepare` with an existing tokenizer: reads, checks, tokenizes, audits, shuffles, writes
    tokenizers  `encode_batch` of the same tokenizer over the same texts in memory

`--copies` writes the rows that many times, each text with a number in front so that none is a duplicate.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from txclf.config import run_config
from txclf.data import shards
from txclf.data.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=["txclf", "tokenizers"])
    parser.add_argument("run_file")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--copies", type=int, default=1)
    chosen = parser.parse_intermixed_args()
    run = run_config.load(chosen.run_file, chosen.words)
    trained = prepare(run)  # makes the tokenizer, once for all samples
    manifest = shards.load_manifest(trained)
    with tempfile.TemporaryDirectory(dir=run.storage) as scratch:
        tokenizer = Path(scratch, "tokenizer.json")
        tokenizer.write_text(shards.tokenizers(trained)[0])
        data = Path(scratch, "data.parquet")
        read = write_copies(str(run.data.train and run.data.train[0]), data, chosen.copies, run.data.text[0])
        if chosen.variant == "tokenizers":
            bare = Tokenizer.from_file(str(tokenizer))
            bare.enable_truncation(run.tokenizer.max_length)
            texts = pq.read_table(data)[run.data.text[0]].to_pylist()
            start = time.perf_counter()
            encoded = bare.encode_batch(texts)
            seconds = time.perf_counter() - start
            tokens = sum(len(row.ids) for row in encoded)
        else:
            words = [f"storage={scratch}", f"data.train={data}", "data.test=null", "data.valid=null"]
            words += ["tokenizer.kind=file", f"tokenizer.file={tokenizer}"]
            again = run_config.load(chosen.run_file, [*chosen.words, *words])
            start = time.perf_counter()
            folder = prepare(again)
            seconds = time.perf_counter() - start
            tokens = sum(split.tokens for split in shards.load_manifest(folder).splits.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "value": tokens / seconds,
                "seconds": seconds,
                "rows": read,
                "tokens": tokens,
                "peak_mb": round(peak),
                "vocab_size": manifest.vocab_size,
            }
        )
    )


def write_copies(source: str, target: Path, copies: int, text: str) -> int:
    """Write the rows `copies` times and return their number."""
    table = pq.read_table(source)
    place = table.column_names.index(text)
    rows = 0
    with pq.ParquetWriter(target, table.schema) as writer:
        for number in range(copies):
            texts = [f"{number} {value}" for value in table[text].to_pylist()]
            copy = table.set_column(place, text, pa.array(texts, table.schema.field(text).type))
            writer.write_table(copy, row_group_size=20_000)
            rows += len(copy)
    return rows


if __name__ == "__main__":
    main()
