"""Rows of Parquet files, and the bounds before their values are unpacked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.data_files import (
    as_parquet,
    as_table,
    checked,
    invalid_strings,
    pairs,
    raw,
    source_of,
)
from txclf.core.errors import DataError
from txclf.data.parquet_files import MAX_COLUMN_BYTES, MAX_READ_BYTES
from txclf.data.raw import MAX_BATCH_CHARS
from txclf.data.records import Reject, read_raw, read_rows
from txclf.data.sources import Source


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


# --------------------------------------------------------------------------------------------------------------- bounds


def write_group(path: Path, table: pa.Table, **settings: Any) -> Source:
    pq.write_table(table, path, **{"compression": "zstd", **settings})
    return Source(str(path), "parquet")


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_read_parquet_value_that_unpacks_far_beyond_the_file_is_refused(tmp_path: Path, use_dictionary: bool) -> None:
    table = as_table([("a" * (MAX_COLUMN_BYTES + 1), "x"), ("b", "y")])
    source = write_group(tmp_path / "a.parquet", table, use_dictionary=use_dictionary)
    with pytest.raises(DataError, match=r"column `text` of row group 1 needs 134,2.* bytes in memory for"):
        raw(source)
    assert raw(source, ["label"])[0].columns == {"label": ["x", "y"]}


def test_read_parquet_list_that_unpacks_far_beyond_the_file_is_refused(tmp_path: Path) -> None:
    zeros = pa.ListArray.from_arrays([0, MAX_COLUMN_BYTES // 8 + 1], np.zeros(MAX_COLUMN_BYTES // 8 + 1, np.int64))
    source = write_group(tmp_path / "a.parquet", pa.table({"text": ["a"], "numbers": zeros}))
    with pytest.raises(DataError, match=r"column `numbers\.list\.element` of row group 1 needs"):
        raw(source)


@pytest.mark.parametrize("is_dictionary", [True, False])
def test_read_parquet_repeated_long_value_is_read_in_small_batches(tmp_path: Path, is_dictionary: bool) -> None:
    text = "long text " * 2**16
    texts = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), [text])
    table = pa.table({"text": texts, "label": ["x", "y"] * 500})
    source = write_group(tmp_path / "a.parquet", table, store_schema=is_dictionary)
    assert Path(source.path).stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    rows = 0
    for batch in read_raw(source):
        assert sum(map(len, batch.columns["text"])) <= MAX_BATCH_CHARS
        assert set(batch.columns["text"]) == {text}
        assert pa.total_allocated_bytes() - before < 3 * MAX_READ_BYTES
        rows += len(batch.rows)
    assert rows == 1000


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "PLAIN", "DELTA_LENGTH_BYTE_ARRAY"])
def test_read_parquet_other_encodings_are_read_in_small_batches(tmp_path: Path, encoding: str) -> None:
    texts = [f"{'long text ' * 2**15} {i}" for i in range(100)]
    source = write_group(
        tmp_path / "a.parquet", pa.table({"text": texts}), use_dictionary=False, column_encoding={"text": encoding}
    )
    batches = raw(source)
    assert [text for batch in batches for text in batch.columns["text"]] == texts
    assert max(len(batch.rows) for batch in batches) <= MAX_BATCH_CHARS // len(texts[0])


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_read_parquet_long_values_are_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType
) -> None:
    monkeypatch.setattr("txclf.data.raw.MAX_CHARS", 100)
    monkeypatch.setattr("txclf.data.parquet_files.MAX_VALUE_BYTES", 1000)
    monkeypatch.setattr("txclf.data.raw.MAX_BATCH_CHARS", 1500)
    texts = pa.array(["a", "b" * 101, "c", "d" * 100, "e" * 3000, None, "f"]).cast(kind)
    numbers = pa.array([[1], [2], [0] * 1000, [3], [], None, [0] * 100])
    source = write_group(tmp_path / "a.parquet", pa.table({"text": texts, "numbers": numbers}))
    batches = raw(source)
    values = {
        row: (text, reason)
        for batch in batches
        for i, (row, text) in enumerate(zip(batch.rows, batch.columns["text"], strict=True))
        for reason in [batch.problems.get(i)]
    }
    assert {row for row, (_, reason) in values.items() if reason} == {2, 3, 5}
    assert [values[row][0] for row in (1, 4, 6, 7)] == ["a", "d" * 100, None, "f"]
    assert values[2][1] == "`text` has over 100 bytes"


def test_read_packed_parquet_larger_than_the_maximum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("txclf.data.parquet_files.MAX_PACKED_BYTES", 500)
    with pytest.raises(DataError, match="over 500 bytes when it is decompressed"):
        raw(source_of(tmp_path / "a.parquet.gz", gzip.compress(as_parquet(as_table([("a", "x")])))))


def test_read_rows_class_labels_of_datasets_have_their_names(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    kinds["several"] = {"feature": kinds["label"], "_type": "Sequence"}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, -1, 0], "several": [[1, 0], [], [1]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    source = source_of(tmp_path / "a.parquet", as_parquet(table))
    rows, rejects = checked(source)
    assert pairs(rows) == [("a", "pos"), ("c", "neg")]
    assert [(reject.row, reject.reason) for reject in rejects] == [(2, "no label: `label` missing or blank")]
    ((sets, _),) = read_rows(source, ["text"], "several", label_delimiter=",")
    assert sets.label_sets == [("neg", "pos"), (), ("pos",)]
    assert raw(source)[0].columns["label"] == [1, -1, 0]  # what `predict` writes again
    damaged = table.replace_schema_metadata({"huggingface": "{"})
    assert pairs(checked(source_of(tmp_path / "b.parquet", as_parquet(damaged)))[0])[0] == ("a", "1")
