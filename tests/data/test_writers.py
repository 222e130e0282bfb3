"""Output files of rows, written in chunks and joined: every value comes back, or the file is refused."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txclf.core import strict_json
from txclf.core.errors import ConfigError, DataError, StorageError
from txclf.data import writers
from txclf.data.records import read_raw
from txclf.data.sources import find_sources
from txclf.data.writers import Chunk, ColumnTypeError

Rows = dict[str, list[Any]]
COLUMNS: Rows = {
    "text": ["a good day", 'says "no", twice', "tab\there", "naïve 🎉"],
    "score": [0.25, 1.0, None, 3.5],
}
TEXT_FILES = ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.zst"]
JSON_FILES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"]


def write(folder: Path, name: str, chunks: list[Rows]) -> str:
    """Write each of the chunks, and join them."""
    out = str(folder / name)
    style, codec = writers.style(out)
    files = []
    for number, columns in enumerate(chunks):
        path = folder / f"chunk-{number}"
        path.write_bytes(writers.encode(style, columns))
        files.append(Chunk(str(path), f"in-{number}.jsonl"))
    writers.join(files, out, style, codec, list(chunks[0]))
    return out


def halves(columns: Rows) -> list[Rows]:
    """Return columns as two chunks: all rows but the last one, and the last one."""
    return [{name: values[rows] for name, values in columns.items()} for rows in (slice(0, -1), slice(-1, None))]


def read(path: str) -> Rows:
    """Read all rows of a file."""
    (source,) = find_sources([path])
    (batch,) = read_raw(source)
    assert not batch.problems
    return batch.columns


HOSTILE = st.text(st.sampled_from(list("\r\n\t\"', \\\x00\x0b\x1c\x7f\x85\xa0\u2028\u2029\ufeffa0é🎉")), max_size=6)
TEXTS = st.one_of(HOSTILE, st.text(st.characters(exclude_categories=["Cs"]), max_size=4), st.none())
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**53 - 2, 2**53 + 2), st.floats(allow_nan=False), HOSTILE
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=5), names=st.tuples(HOSTILE, HOSTILE))
@pytest.mark.parametrize("name", TEXT_FILES)
def test_join_texts_of_csv_and_tsv_come_back(name: str, rows: list[tuple[str, str]], names: tuple[str, str]) -> None:
    columns = dict(zip([names[0] + "a", names[1] + "b"], map(list, zip(*rows, strict=True)), strict=True))
    empty = {key: ["" if value is None else value for value in values] for key, values in columns.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), name, halves(columns))
        assert read(path) == empty
        if name == "a.tsv":  # other readers get them back too
            with open(path, newline="", encoding="utf-8") as file:
                assert list(csv.reader(file, delimiter="\t"))[1:] == list(map(list, zip(*empty.values(), strict=True)))


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(values=st.lists(VALUES | st.just(float("inf")), min_size=2, max_size=4))
@pytest.mark.parametrize("name", JSON_FILES)
def test_join_json_lines_are_strict_and_come_back(name: str, values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), name, halves({"v": values}))
        finite = strict_json.finite(values)
        assert read(path)["v"] == finite
        if name == "a.jsonl":
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            assert [json.loads(line, parse_constant=refuse_constant)["v"] for line in lines] == finite


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(values=st.lists(VALUES, min_size=2, max_size=4) | st.lists(st.integers() | st.floats(), min_size=2))
def test_join_parquet_values_come_back_or_are_refused(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write(Path(folder), "a.parquet", halves({"v": values}))
        except (ColumnTypeError, DataError):
            assert not (Path(folder) / "a.parquet").exists()
            return
        assert repr(plain(read(path)["v"])) == repr(plain(values))


def plain(value: Any) -> Any:
    """Return a value without the keys of nulls, with numbers that are equal as one type."""
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value) if value[key] is not None}
    if isinstance(value, list):
        return list(map(plain, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ([None, []], [[0.5]], pa.list_(pa.float64())),
        ([[1]], [[0.75, 2]], pa.list_(pa.float64())),
        ([{"a": 1}], [{"b": {"c": True}}], pa.struct({"a": pa.int64(), "b": pa.struct({"c": pa.bool_()})})),
        ([2**53], [0.5], pa.float64()),
        ([None], [None], pa.string()),
    ],
)
def test_join_parquet_types_that_grow_hold_all_values(
    tmp_path: Path, first: list[Any], second: list[Any], kind: pa.DataType
) -> None:
    path = write(tmp_path, "a.parquet", [{"v": first}, {"v": second}])
    assert pq.read_schema(path).field("v").type == kind
    assert plain(read(path)["v"]) == plain([*first, *second])


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ([True], [1], "int64 here, but bool before"),
        (["1"], [1], "int64 here, but string before"),
        ([[1]], [[True]], "list<item: bool> here, but list<item: int64> before"),
        ([{"a": 1}], [{"a": "x"}], "struct<a: string> here, but struct<a: int64> before"),
        ([0.5], [2**53 + 1], "cannot become double: Integer value 9007199254740993"),
    ],
)
def test_join_parquet_types_without_a_common_one_name_file_and_column(
    tmp_path: Path, first: list[Any], second: list[Any], problem: str
) -> None:
    with pytest.raises(DataError, match=rf"`in-1\.jsonl`: column `v`: {problem}.* Write \.jsonl"):
        write(tmp_path, "a.parquet", [{"v": first}, {"v": second}])
    assert not (tmp_path / "a.parquet").exists()


def test_encode_values_that_a_format_lacks_are_documented_text() -> None:
    columns: Rows = {"b": [b"\xff\x00"], "l": [["é", None, float("nan")]], "d": [{"a": b"x"}], "t": [True], "n": [None]}
    raw = base64.b64encode(b"\xff\x00").decode()
    assert writers.encode("jsonl", columns).decode() == (
        f'{{"b": "{raw}", "l": ["é", null, null], "d": {{"a": "eA=="}}, "t": true, "n": null}}\n'
    )
    (line,) = csv.reader([writers.encode("csv", columns).decode()])
    assert line == [raw, '["é", null, null]', '{"a": "eA=="}', "true", ""]


def test_encode_csv_null_differs_from_empty_text() -> None:
    assert writers.encode("csv", {"a": [None, ""], "b": ["", None]}) == b',""\n"",\n'


def test_join_tsv_header_says_that_cells_may_have_quotes(tmp_path: Path) -> None:
    lines = Path(write(tmp_path, "a.tsv", halves(COLUMNS))).read_text().splitlines()
    assert lines == [
        '"text"\t"score"',
        "a good day\t0.25",
        '"says ""no"", twice"\t1.0',
        '"tab\there"\t',
        "naïve 🎉\t3.5",
    ]


def test_join_compressed_file_is_read_by_others(tmp_path: Path) -> None:
    with gzip.open(write(tmp_path, "a.csv.gz", halves(COLUMNS)), "rt", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["text", *COLUMNS["text"]]


def test_join_parquet_small_chunks_become_one_row_group(tmp_path: Path) -> None:
    file = pq.ParquetFile(write(tmp_path, "a.parquet", halves(COLUMNS)))
    assert file.num_row_groups == 1
    assert file.schema_arrow.field("score").type == pa.float64()


def test_join_parquet_missing_chunk_is_a_storage_error(tmp_path: Path) -> None:
    chunks = [Chunk(str(tmp_path / "gone.arrow"), "in.jsonl")]
    with pytest.raises(StorageError, match=r"a\.parquet`: cannot be written"):
        writers.join(chunks, str(tmp_path / "a.parquet"), "parquet", None, ["text"])
    assert os.listdir(tmp_path) == []


def test_style_of_a_uri_is_that_before_its_query() -> None:
    assert writers.style("s3://bucket/a.csv.gz?endpoint_override=host:9000") == ("csv", "gzip")


@pytest.mark.parametrize("out", ["a", "a.txt", "a.csv.bz2", "a.parquet.gz"])
def test_style_unknown_extension_is_refused(out: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{out}`: not a format that can be written"):
        writers.style(out)


def test_atomic_stream_failure_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with writers.atomic_stream(str(tmp_path / "a.csv"), None) as stream:
            stream.write(b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert os.listdir(tmp_path) == []


def test_atomic_stream_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(StorageError, match="cannot be written"),
        writers.atomic_stream(str(tmp_path / "taken" / "a.csv"), None),
    ):
        pass
