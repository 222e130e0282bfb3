"""Reading of labelled files: kept rows, rejected rows and their reasons."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.helpers.data_files import (
    PACK,
    ROWS,
    WRITERS,
    as_csv,
    as_jsonl,
    as_parquet,
    as_table,
    checked,
    invalid_strings,
    pairs,
    put,
    raw,
    source_of,
)
from txclf.core.errors import DataError
from txclf.data import records
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


@pytest.mark.parametrize("ending", PACK)
def test_read_rows_folder_of_texts_gives_labels(tmp_path: Path, ending: str) -> None:
    for name, content in {"pos/2": "two\nlines", "pos/10": "\ufeffmarked 🎉", "neg/1": "bad"}.items():
        put(tmp_path / f"{name}.txt{ending}", PACK[ending](content.encode()))
    put(tmp_path / "readme.txt", "no label")
    put(tmp_path / "pos" / ".hidden.txt", "no row")
    neg, pos = find_sources([str(tmp_path)])
    assert (neg.label, pos.label) == ("neg", "pos")
    rows, rejects = checked(pos, text=["anything"], label="at_all", batch_rows=1)
    assert pairs(rows) == [("marked 🎉", "pos"), ("two\nlines", "pos")]
    assert rejects == []
    assert [kept.rows for kept in rows] == [[1], [1]]
    assert [kept.files for kept in rows] == [[f"{tmp_path}/pos/10.txt{ending}"], [f"{tmp_path}/pos/2.txt{ending}"]]
    assert checked(neg, label=None)[0][0].texts == [("bad",)]


def test_read_rows_bad_text_files_are_rejected(tmp_path: Path) -> None:
    put(tmp_path / "pos" / "1.txt", b"caf\xe9")
    put(tmp_path / "pos" / "2.txt.gz", gzip.compress(b"x" * 999)[:-9])
    put(tmp_path / "pos" / "3.txt", " \n")
    put(tmp_path / "pos" / "4.txt", "fine")
    rows, rejects = checked(find_sources([str(tmp_path)])[0])
    assert pairs(rows) == [("fine", "pos")]
    assert [(Path(reject.file).name, reject.row) for reject in rejects] == [("1.txt", 1), ("2.txt.gz", 1), ("3.txt", 1)]
    assert [reject.reason[:14] for reject in rejects] == ["not valid UTF-", "cannot be read", "no text: `text"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_read_rows_csv_accepts_line_ends_and_byte_order_mark(tmp_path: Path, newline: str, mark: bytes) -> None:
    rows = [("one\r\n\r\ntwo", "a"), ("three, four", "b"), (" spaced ", "a")]
    source = source_of(tmp_path / "a.csv", mark + as_csv(rows, newline) + newline.encode() * 3)
    assert pairs(checked(source)[0]) == rows


def test_read_rows_tsv_has_no_quotes(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.tsv", '\ufefftext\tlabel\r\n"open\tx\r\n\r\nsay "hi", you\ty\r\n')
    assert pairs(checked(source)[0]) == [('"open', "x"), ('say "hi", you', "y")]


@pytest.mark.parametrize(
    ("lines", "kept", "rejected"),
    [
        ([b"a,x", b"b", b"c,y,z", b"d,w"], "ad", {2: "expected 2 fields, found 1", 3: "expected 2 fields, found 3"}),
        ([b"a,x", b"", b"caf\xe9,y", b"b,z"], "ab", {2: "not valid UTF-8"}),
        ([b"a,\xff", b'"b","x"', b"\xe2\x82,y"], "b", {1: "not valid UTF-8", 3: "not valid UTF-8"}),
        ([b"a,x", b'"b"c,y', b"d,z"], "ad", {2: "line 3: malformed csv: ',' expected after '\"'"}),
        ([b"a,x", b'"b', b'"c,y', b"d,z"], "ad", {2: "line 4: malformed csv: ',' expected after '\"'"}),
        ([b"a,x", b'b,"y', b"c,z"], "a", {2: "a quoted field is never closed and runs to the end of the file, line 4"}),
        ([b"a,x", b",y", b'" \t",y'], "a", dict.fromkeys([2, 3], "no text: `text` missing or blank")),
        ([b"a,x", b"b,", b'c," "'], "a", dict.fromkeys([2, 3], "no label: `label` missing or blank")),
    ],
)
@pytest.mark.parametrize("batch_rows", [1, 2048])
def test_read_rows_bad_csv_rows_are_rejected(
    tmp_path: Path, lines: list[bytes], kept: str, rejected: dict[int, str], batch_rows: int
) -> None:
    source = source_of(tmp_path / "a.csv", b"\n".join([b"text,label", *lines]))
    rows, rejects = checked(source, batch_rows=batch_rows)
    assert "".join(text for text, _ in pairs(rows)) == kept
    assert rejects == [Reject(source.path, row, reason) for row, reason in rejected.items()]


def test_read_raw_other_columns_are_not_checked(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.csv", b"text,label,note\na,x,\xff\n")
    assert not raw(source, ["text", "label"])[0].problems
    assert raw(source)[0].problems == {0: "not valid UTF-8"}


def test_read_rows_long_documents_are_kept_and_endless_ones_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = csv.field_size_limit()
    text = 'word "quoted"\n' * 20_000
    source = source_of(tmp_path / "a.csv", as_csv([(text, "x"), ("b", "y")]))
    assert pairs(checked(source, batch_rows=1)[0]) == [(text, "x"), ("b", "y")]
    assert csv.field_size_limit() == before

    monkeypatch.setattr(records, "MAX_CHARS", 100)
    unclosed = source_of(tmp_path / "b.csv", 'text,label\na,x\n"open,y\n' + "line,z\n" * 40)
    rows, rejects = checked(unclosed)
    assert pairs(rows)[0] == ("a", "x")
    assert [reject.row for reject in rejects] == [2]
    assert "over 100 characters, maybe a quote that is never closed" in rejects[0].reason
    assert pairs(rows)[-1] == ("line", "z")

    one_line = source_of(tmp_path / "a.jsonl", as_jsonl([("a", "x"), ("b" * 150, "y"), ("c", "z")]))
    rows, rejects = checked(one_line)
    assert pairs(rows) == [("a", "x"), ("c", "z")]
    assert rejects[0].reason == "a line of over 100 characters"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": a}', "not valid JSON: Expecting value at character 10"),
        (b'{"text": "a"} {}', "not valid JSON: Extra data at character 15"),
        (b'["a", "x"]', "JSON of type list, expected an object"),
        (b'"a"', "JSON of type str, expected an object"),
        (b"null", "JSON of type NoneType, expected an object"),
        (b'{"text": "caf\xe9", "label": "x"}', "not valid UTF-8"),
        (b'{"text": "\\ud83c", "label": "x"}', "not valid UTF-8"),
        (b'{"text": "a", "label": "x", "more": [{"\\uDfff": 1}]}', "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON: "),
        (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"label": "x"}', "no text: `text` missing or blank"),
        (b'{"text": null, "label": "x"}', "no text: `text` missing or blank"),
        (b'{"text": " \\n", "label": "x"}', "no text: `text` missing or blank"),
        (b'{"text": 5, "label": "x"}', "`text` is of type int, expected a string"),
        (b'{"text": ["a"], "label": "x"}', "`text` is of type list, expected a string"),
        (b'{"text": "a"}', "no label: `label` missing or blank"),
        (b'{"text": "a", "label": null}', "no label: `label` missing or blank"),
        (b'{"text": "a", "label": NaN}', "no label: `label` missing or blank"),
        (b'{"text": "a", "label": "  "}', "no label: `label` missing or blank"),
        (b'{"text": "a", "label": ["x"]}', "`label` is of type list, expected a string, integer or boolean"),
        (b'{"text": "a", "label": {"x": 1}}', "`label` is of type dict, expected a string, integer or boolean"),
    ],
)
def test_read_rows_bad_jsonl_rows_are_rejected(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"text": "pair \\ud83c\\udf89", "label": "x"}'
    source = source_of(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"\r\n".join([good, b"", line, b" ", good]))
    rows, (reject,) = checked(source)
    assert pairs(rows) == [("pair 🎉", "x")] * 2
    assert [kept.rows for kept in rows] == [[1, 3]]
    assert (reject.file, reject.row) == (source.path, 2)
    assert reject.reason.startswith(reason)


def test_read_raw_jsonl_columns_are_the_union_in_order(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.jsonl", '{"b": 1}\n{"a": [2], "b": null}\nnonsense\n{"c": {"d": 3}}\n')
    (batch,) = raw(source)
    assert batch.columns == {
        "b": [1, None, None, None],
        "a": [None, [2], None, None],
        "c": [None, None, None, {"d": 3}],
    }
    assert list(batch.columns) == ["b", "a", "c"]
    assert list(batch.problems) == [2]


def test_read_raw_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = as_table([("a", 1), ("b", 2), ("c", 3)]).append_column("more", pa.array([[1.5], None, []]))
    source = source_of(tmp_path / "a.parquet", as_parquet(table))
    first, second = raw(source, batch_rows=2)
    assert first.columns == {"text": ["a", "b"], "label": [1, 2], "more": [[1.5], None]}
    assert (first.rows, second.rows) == ([1, 2], [3])
    assert first.schema == table.schema
    (only,) = raw(source, ["label"])
    assert only.columns == {"label": [1, 2, 3]}
    assert only.schema == table.select(["label"]).schema


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_read_raw_parquet_string_types_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["a", None, "", "b 🎉"]).cast(kind)
    table = pa.table({"text": texts, "label": pa.array(["x", "y", "x", "y"]).cast(kind)})
    rows, rejects = checked(source_of(tmp_path / "a.parquet", as_parquet(table)))
    assert pairs(rows) == [("a", "x"), ("b 🎉", "y")]
    assert [reject.row for reject in rejects] == [2, 3]


def test_read_raw_parquet_invalid_utf8_is_a_problem(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": invalid_strings([b"a", b"caf\xe9", b"c", b"d"]),
            "label": ["x", "y", "x", "y"],
            "tags": pa.ListArray.from_arrays([0, 1, 2, 3, 4], invalid_strings([b"t", b"t", b"\xff", b"t"])),
        }
    )
    source = source_of(tmp_path / "a.parquet", as_parquet(table))
    assert raw(source)[0].problems == {1: "not valid UTF-8", 2: "not valid UTF-8"}
    kept, rejects = zip(*read_rows(source, ["text"], "label"), strict=True)
    assert pairs(list(kept)) == [("a", "x"), ("c", "x"), ("d", "y")]
    assert rejects == ([Reject(source.path, 2, "not valid UTF-8")],)


def test_read_raw_parquet_value_without_python_type_is_a_problem(tmp_path: Path) -> None:
    when = pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("us"))
    source = source_of(tmp_path / "a.parquet", as_parquet(as_table([("a", "x"), ("b", "y")]).append_column("at", when)))
    (batch,) = raw(source)
    assert list(batch.problems) == [1]
    assert batch.problems[1].startswith("`at`: ")


# ------------------------------------------------------------------------------------------------------------ checking


@pytest.mark.parametrize(
    ("values", "labels", "kinds"),
    [
        ([" x ", "y\n"], ["x", "y"], {"string"}),
        ([3, -1], ["3", "-1"], {"integer"}),
        ([True, False], ["true", "false"], {"boolean"}),
        ([3.0, math.nan, -0.0, 1e3], ["3", "0", "1000"], {"float"}),
        ([0.5, 2.25], ["0.5", "2.25"], {"float"}),
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


@pytest.mark.parametrize(("name", "ends"), [("a.tsv", r"\r\n|\r|\n"), ("a.jsonl", "\n")])
def test_read_rows_counts_every_line(tmp_path: Path, name: str, ends: str) -> None:
    noise = random.Random(0)
    body = bytes(noise.choices(b'\n\r\t{}"a\xe9', k=5000))
    lines = [
        line for line in re.split(ends, body.decode(errors="replace")) if line.strip("" if ends[0] == "\\" else None)
    ]
    source = source_of(tmp_path / name, (b"text\tlabel\n" if name == "a.tsv" else b"") + body)
    batches = raw(source, batch_rows=100)
    assert [row for batch in batches for row in batch.rows] == list(range(1, len(lines) + 1))
