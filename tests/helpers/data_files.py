"""Small labelled files of every format, and what is read of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from txclf.data.records import RawBatch, Reject, Rows, read_raw, read_rows
from txclf.data.sources import Source, find_sources

ROWS = [("a good day", "pos"), ('she said "no", twice', "neg"), ("naïve 🎉 日本", "pos")]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def as_csv(rows: Sequence[Sequence[str]], newline: str = "\n") -> bytes:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in '",\r\n') else text

    return newline.join(",".join(map(cell, row)) for row in [("text", "label"), *rows]).encode()


def as_tsv(rows: Sequence[Sequence[str]]) -> bytes:
    return "\n".join("\t".join(row) for row in [("text", "label"), *rows]).encode()


def as_jsonl(rows: Sequence[Sequence[Any]]) -> bytes:
    return "".join(json.dumps(dict(zip(("text", "label"), row, strict=True))) + "\n" for row in rows).encode()


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def as_table(rows: Sequence[Sequence[Any]]) -> pa.Table:
    texts, labels = zip(*rows, strict=True)
    return pa.table({"text": list(texts), "label": list(labels)})


WRITERS: dict[str, Callable[[Sequence[Sequence[Any]]], bytes]] = {
    "csv": as_csv,
    "tsv": as_tsv,
    "jsonl": as_jsonl,
    "parquet": lambda rows: as_parquet(as_table(rows)),
}


def put(path: Path, content: bytes | str = b"") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def source_of(path: Path, content: bytes | str) -> Source:
    (source,) = find_sources([put(path, content)])
    return source


def invalid_strings(values: list[bytes]) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def raw(source: Source, columns: Sequence[str] | None = None, batch_rows: int = 2048) -> list[RawBatch]:
    batches = list(read_raw(source, columns, batch_rows))
    for batch in batches:
        assert len(batch.rows) == len(batch.files) <= batch_rows
        assert all(len(values) == len(batch.rows) for values in batch.columns.values())
        assert all(values[i] is None for values in batch.columns.values() for i in batch.problems)
        for values in batch.columns.values():
            json.dumps(values, ensure_ascii=False, default=str).encode()
    return batches


def checked(
    source: Source, text: Sequence[str] = ("text",), label: str | None = "label", batch_rows: int = 2048
) -> tuple[list[Rows], list[Reject]]:
    total = sum(len(batch.rows) for batch in raw(source, batch_rows=batch_rows))
    both = list(read_rows(source, text, label, batch_rows))
    rows, rejects = [kept for kept, _ in both], [reject for _, rejected in both for reject in rejected]
    assert sum(len(kept.rows) for kept in rows) + len(rejects) == total
    for kept in rows:
        assert len(kept.texts) == len(kept.rows) == len(kept.files)
        assert len(kept.labels) == (0 if label is None else len(kept.rows))
    return rows, rejects


def pairs(rows: list[Rows]) -> list[tuple[str, str]]:
    return [(text[0], label) for kept in rows for text, label in zip(kept.texts, kept.labels, strict=True)]
