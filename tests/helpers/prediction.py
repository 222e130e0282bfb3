"""Files of rows to predict."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.data_files import PACK

Row = dict[str, Any]


ROWS: list[Row] = [
    {"id": "7", "text": "the quick brown fox", "note": "a, b"},
    {"id": "x", "text": 'the "lazy" dog, jumps', "note": ""},
    {"id": "9", "text": '"five" naïve 🎉 日本', "note": 'say "hi"'},
    {"id": "10", "text": "wizards " * 40, "note": "c"},
]


def as_bytes(rows: Sequence[Row], ending: str) -> bytes:
    text = io.StringIO()
    if ending == "csv":
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif ending == "tsv":
        text.writelines("\t".join(line) + "\n" for line in [list(rows[0]), *(row.values() for row in rows)])
    elif ending == "jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows)), sink)
        return bytes(sink.getvalue())
    return text.getvalue().encode()


def put(path: Path, rows: Sequence[Row] | bytes | str) -> str:
    kind, _, codec = path.name.partition(".")[2].partition(".")
    if isinstance(rows, str):
        rows = rows.encode()
    content = rows if isinstance(rows, bytes) else as_bytes(rows, kind)
    path.write_bytes(PACK["." + codec if codec else ""](content))
    return str(path)
