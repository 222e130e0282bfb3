"""Any file is read, with every row counted, or refused: hypothesis looks for one that is neither.

`test_hostile_files.py` runs these tests.
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.data_files import PACK, ROWS, WRITERS, as_parquet, raw, source_of
from txclf.core.errors import TxclfError
from txclf.data.records import read_rows

QUICK: Any = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
NAMES = [f"a.{kind}{ending}" for kind in WRITERS for ending in PACK]
PIECES = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b"\\ud800",
    b"text",
    b"\x15",
]
MUTATIONS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["put", "cut", "repeat", "flip"]), st.sampled_from(PIECES)),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    for share, kind, piece in mutations:
        place = int(share * len(content))
        head, tail = content[:place], content[place:]
        content = {
            "put": head + piece + tail,
            "cut": head + tail[len(piece) * 3 :],
            "repeat": head + head[-40:] + tail,
            "flip": head + bytes(byte ^ 0xFF for byte in tail[:1]) + tail[1:],
        }[kind]
    return content


def read_or_refused(path: Path, content: bytes) -> None:
    """Read a file both ways, with the same rows in small and large batches, unless it is refused."""
    source = source_of(path, content)
    with suppress(TxclfError):
        batches = raw(source)
        assert [row for batch in batches for row in batch.rows] == list(range(1, sum(len(b.rows) for b in batches) + 1))
        assert sum(len(batch.rows) for batch in raw(source, batch_rows=2)) == sum(len(batch.rows) for batch in batches)
        both = list(read_rows(source, ["text"], "label"))
        kept = [row for rows, _ in both for row in rows.rows]
        rejected = [reject.row for _, rejects in both for reject in rejects]
        assert sorted(kept + rejected) == [row for batch in batches for row in batch.rows]


@settings(max_examples=150, **QUICK)
@given(name=st.sampled_from(NAMES), content=st.binary(max_size=300), is_packed=st.booleans())
def test_read_random_bytes_are_rows_or_refused(tmp_path: Path, name: str, content: bytes, is_packed: bool) -> None:
    read_or_refused(
        tmp_path / name, PACK[Path(name).suffix](content) if is_packed and Path(name).suffix in PACK else content
    )


@settings(max_examples=300, **QUICK)
@given(name=st.sampled_from(NAMES), mutations=MUTATIONS, is_packed=st.booleans())
def test_read_damaged_files_are_rows_or_refused(
    tmp_path: Path, name: str, mutations: list[tuple[float, str, bytes]], is_packed: bool
) -> None:
    kind, pack = name.split(".")[1], PACK.get(Path(name).suffix, bytes)
    content = WRITERS[kind](ROWS * 20)
    if kind == "parquet":
        lists = pa.array([["x", "y"], None, []] * 20)
        content = as_parquet(pa.table({"text": [row[0] for row in ROWS] * 20, "label": ["a"] * 60, "tags": lists}))
    read_or_refused(
        tmp_path / name, pack(mutated(content, mutations)) if is_packed else mutated(pack(content), mutations)
    )


@settings(max_examples=250, **QUICK)
@given(
    quotes=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 20)), min_size=1, max_size=4),
    newline=st.sampled_from(["\n", "\r\n"]),
    is_label_first=st.booleans(),
)
def test_read_csv_with_stray_quotes_has_every_row_or_is_refused(
    tmp_path: Path, quotes: list[tuple[int, int]], newline: str, is_label_first: bool
) -> None:
    rows = [(f"rain wind {i}", ["weather", "sport"][i % 2]) for i in range(60)]
    lines = [",".join(row[::-1] if is_label_first else row) for row in rows]
    for row, place in quotes:
        lines[row] = lines[row][:place] + '"' + lines[row][place:]
    header = "label,text" if is_label_first else "text,label"
    source = source_of(tmp_path / "a.csv", newline.join([header, *lines]))
    with suppress(TxclfError):
        assert sum(len(batch.rows) for batch in raw(source)) == 60


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=150, **QUICK)
@given(rows=st.lists(st.tuples(TEXT, st.sampled_from(["weather", "sport", "1"])), min_size=1, max_size=8))
def test_read_written_texts_come_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    output = io.StringIO()
    csv.writer(output).writerows([("text", "label"), *rows])
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    for name, content in (("a.csv", output.getvalue()), ("a.jsonl", lines)):
        batches = raw(source_of(tmp_path / name, content))
        found = [pair for batch in batches for pair in zip(batch.columns["text"], batch.columns["label"], strict=True)]
        assert found == rows
