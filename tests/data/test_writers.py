"""Output files of rows, written in chunks and joined."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from txclf.core.errors import ConfigError, StorageError
from txclf.data import writers
from txclf.data.records import read_raw
from txclf.data.sources import find_sources

COLUMNS: dict[str, list[Any]] = {
    "text": ["a good day", 'says "no", twice', "tab\there", "naïve 🎉"],
    "score": [0.25, 1.0, None, 3.5],
}


def write(folder: Path, name: str) -> str:
    """Write `COLUMNS` as two chunks, and join them."""
    out = str(folder / name)
    style, codec = writers.style(out)
    schema = writers.infer(COLUMNS)
    chunks = []
    for number, rows in enumerate((slice(0, 3), slice(3, 4))):
        chunk = folder / f"chunk-{number}"
        chunk.write_bytes(writers.encode(style, {key: values[rows] for key, values in COLUMNS.items()}, schema))
        chunks.append(str(chunk))
    writers.join(chunks, out, style, codec, list(COLUMNS))
    return out


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_join_file_is_read_back(tmp_path: Path, name: str) -> None:
    (source,) = find_sources([write(tmp_path, name)])
    (batch,) = read_raw(source)
    assert batch.columns["text"] == COLUMNS["text"]
    scores = [None if value in (None, "") else float(value) for value in batch.columns["score"]]
    assert scores == COLUMNS["score"]
    assert not batch.problems


def test_join_tsv_quotes_only_cells_with_tabs(tmp_path: Path) -> None:
    lines = Path(write(tmp_path, "a.tsv")).read_text().splitlines()
    assert lines[0] == "text\tscore"
    assert lines[2] == 'says "no", twice\t1.0'
    assert lines[3] == '"tab\there"\t'


def test_join_parquet_small_chunks_become_one_row_group(tmp_path: Path) -> None:
    file = pq.ParquetFile(write(tmp_path, "a.parquet"))
    assert file.num_row_groups == 1
    assert file.schema_arrow.field("score").type == pa.float64()


@pytest.mark.parametrize("out", ["a", "a.txt", "a.csv.bz2", "a.parquet.gz"])
def test_style_unknown_extension_is_refused(out: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{out}`: not a format that can be written"):
        writers.style(out)


def test_infer_column_of_nulls_counts_as_text() -> None:
    schema = writers.infer({"a": [None, None], "b": [1, None]})
    assert schema == pa.schema([("a", pa.string()), ("b", pa.int64())])


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
