"""Reading of labelled files: kept rows, rejected rows and their reasons."""

from __future__ import annotations

import json
import math
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.data_files import (
    PACK,
    ROWS,
    WRITERS,
    as_csv,
    as_jsonl,
    checked,
    pairs,
    raw,
    source_of,
)
from txclf.core.errors import DataError
from txclf.data.records import Reject, read_rows, sort_labels
from txclf.data.sources import find_sources

# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("batch_rows", [1, 2, 2048])
def test_read_rows_every_format_and_compression_gives_the_same_rows(
    tmp_path: Path, kind: str, ending: str, batch_rows: int
) -> None:
    source = source_of(tmp_path / f"a.{kind}{ending}", PACK[ending](WRITERS[kind](ROWS)))
    rows, rejects = checked(source, batch_rows=batch_rows)
    assert pairs(rows) == ROWS
    assert rejects == []
    assert [number for kept in rows for number in kept.rows] == [1, 2, 3]
    assert {file for kept in rows for file in kept.files} == {source.path}
    assert set().union(*(kept.label_kinds for kept in rows)) == {"string"}


# ------------------------------------------------------------------------------------------------------------ checking


@pytest.mark.parametrize(
    ("values", "labels", "kinds"),
    [
        ([" x ", "y\n"], ["x", "y"], {"string"}),
        ([3, -1], ["3", "-1"], {"integer"}),
        ([True, False], ["true", "false"], {"boolean"}),
        ([3.0, math.nan, -0.0, 1e3], ["3", "0", "1000"], {"float"}),
        ([0.5, 2.25], ["0.5", "2.25"], {"fraction"}),
        (["x", None, "z"], ["x", "z"], {"string"}),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_read_rows_labels_become_strings(
    tmp_path: Path, kind: str, values: list[Any], labels: list[str], kinds: set[str]
) -> None:
    source = source_of(tmp_path / f"a.{kind}", WRITERS[kind]([("t", value) for value in values]))
    (rows,), rejects = checked(source)
    assert rows.labels == labels
    assert rows.label_kinds == kinds
    assert [reject.reason for reject in rejects] == ["no label: `label` missing or blank"] * (len(values) - len(labels))


def test_read_rows_records_the_types_of_labels(tmp_path: Path) -> None:
    (rows,), _ = checked(source_of(tmp_path / "a.jsonl", as_jsonl([("t", 1), ("t", True), ("t", "1"), ("t", 1.0)])))
    assert rows.labels == ["1", "true", "1", "1"]
    assert rows.label_kinds == {"string", "integer", "boolean", "float"}


def test_read_rows_several_text_columns_are_read(tmp_path: Path) -> None:
    lines = [
        {"title": "T", "body": "B", "label": "x"},
        {"title": None, "body": "B", "label": "x"},
        {"title": "T", "label": "x"},
        {"title": " ", "body": None, "label": "x"},
        {"title": "T", "body": 7, "label": "x"},
    ]
    source = source_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    (rows,), rejects = checked(source, text=["title", "body"])
    assert rows.texts == [("T", "B"), ("", "B"), ("T", "")]
    assert rejects == [
        Reject(source.path, 4, "no text: `title` and `body` missing or blank"),
        Reject(source.path, 5, "`body` is of type int, expected a string"),
    ]


def test_read_rows_one_column_may_be_text_and_label(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.csv", as_csv([("a", "x")]))
    ((rows, _),) = read_rows(source, ["label", "label"], "label")
    assert rows.texts == [("x", "x")]
    assert rows.labels == ["x"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["true", "false", "true"], ["false", "true"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["0.5", "10", "9"], ["0.5", "10", "9"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
        ([], []),
    ],
)
def test_sort_labels_integers_in_numeric_order(labels: list[str], expected: list[str]) -> None:
    assert sort_labels(labels) == expected


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("seed", range(8))
def test_read_raw_garbage_raises_only_data_errors(tmp_path: Path, name: str, seed: int) -> None:
    noise = random.Random(seed)
    pieces = [*(bytes([byte]) for byte in b'",\n\r\t{}[:a\xe9\0'), b"\\ud800", b'\n{"text":"a"}\n']
    body = b"".join(noise.choice([*pieces, noise.randbytes(2)]) for _ in range(400))
    header = {"csv": b"text,label\n", "tsv": b"text\tlabel\n"}.get(name.split(".")[1], b"")
    for content in (body, header + body, PACK.get(Path(name).suffix, bytes)(header + body)):
        source = source_of(tmp_path / name, content)
        with suppress(DataError):
            raw(source, batch_rows=7)
        with suppress(DataError):
            checked(source, label=None, batch_rows=11)


def test_read_rows_of_a_folder_has_one_text_per_row(tmp_path: Path) -> None:
    (tmp_path / "news").mkdir()
    (tmp_path / "news/a.txt").write_text("a fox")
    (source,) = find_sources([str(tmp_path)])
    with pytest.raises(DataError, match=r"a folder of text files has one text per row, but 2 are read \(title, body\)"):
        list(read_rows(source, ["title", "body"], "label"))
