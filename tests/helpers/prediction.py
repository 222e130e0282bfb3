"""Input files of predictions, and predictions that are interrupted."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.data_files import PACK
from txclf.core import storage
from txclf.inference.bundle import METADATA

Row = dict[str, Any]


ROWS: list[Row] = [
    {"id": "7", "text": "the quick brown fox", "note": "a, b"},
    {"id": "x", "text": 'the "lazy" dog, jumps', "note": ""},
    {"id": "9", "text": '"five" naïve 🎉 日本', "note": 'say "hi"'},
    {"id": "10", "text": "wizards " * 40, "note": "c"},
]


def as_bytes(rows: Sequence[Row], ending: str) -> bytes:
    """Return rows as the content of a file with this ending."""
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
    """Write rows, or raw content, in the format and compression of the ending, and return the path."""
    kind, _, codec = path.name.partition(".")[2].partition(".")
    if isinstance(rows, str):
        rows = rows.encode()
    content = rows if isinstance(rows, bytes) else as_bytes(rows, kind)
    path.write_bytes(PACK["." + codec if codec else ""](content))
    return str(path)


def with_quantiles(bundle: str, folder: Path, quantiles: Sequence[float]) -> str:
    """Copy a bundle into a folder, with quantiles for prediction sets of as many rows, and return the copy."""
    copy = shutil.copytree(bundle, folder / "with_quantiles")
    content = storage.read_json(copy / METADATA)
    storage.write_json(copy / METADATA, {**content, "conformal": {"rows": len(quantiles), "quantiles": quantiles}})
    return str(copy)


LONG_TEXT = "five boxing wizards jump quickly over the lazy dog " * 20


def write_jsonl(path: Path, rows: int, first: int = 0) -> str:
    """Write JSON lines; every hundredth row has no text. Return the path."""
    with path.open("w") as file:
        for row in range(first, first + rows):
            file.write(json.dumps({"n": row, "text": None if row % 100 == 99 else f"{row} {LONG_TEXT}"}) + "\n")
    return str(path)


def part_files(folder: Path) -> list[str]:
    """Return the names of the part files in a folder that may not exist yet."""
    return sorted(path.name for path in folder.glob("0*") if "errors" not in path.name) if folder.exists() else []


class Stop(Exception):
    """Stand-in for anything that ends a process; not an error of txclf."""


def stop(rows: int) -> None:
    """Interrupt a prediction after its first rows."""
    if rows:
        raise Stop
