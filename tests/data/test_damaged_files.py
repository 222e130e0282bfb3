"""Files that are empty, damaged, foreign or gone."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.data_files import PACK, ROWS, WRITERS, as_parquet, as_table, raw, source_of
from txclf.core.errors import DataError
from txclf.data.records import read_raw, read_rows
from txclf.data.sources import Source


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_read_empty_file_has_no_rows(tmp_path: Path, kind: str, ending: str, content: bytes) -> None:
    source = source_of(tmp_path / f"a.{kind}{ending}", PACK[ending](content) if content else b"")
    assert raw(source) == []


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_read_header_alone_has_no_rows(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})
    content = as_parquet(table) if kind == "parquet" else WRITERS[kind]([])
    assert raw(source_of(tmp_path / f"a.{kind}", content)) == []


def test_read_empty_parquet_file_has_no_rows(tmp_path: Path) -> None:
    assert raw(source_of(tmp_path / "a.parquet", b"")) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_read_missing_column_is_refused(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path / f"a.{kind}", WRITERS[kind](ROWS))
    message = rf"a\.{kind}`: no column `topic` among `text`, `label`\. Set `data\.text` or `data\.label`"
    with pytest.raises(DataError, match=message):
        list(read_rows(source, ["text"], "topic"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_read_repeated_column_is_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["x"], ["b"]], names=["text", "label", "text"])
    content = {"a.csv": b"text,label,text\n", "a.tsv": b"text\tlabel\ttext\n", "a.parquet": as_parquet(table)}[name]
    with pytest.raises(DataError, match="column `text` comes twice"):
        raw(source_of(tmp_path / name, content))


@pytest.mark.parametrize("content", ["text,label\na,x\n".encode("utf-16"), b'"text"x,label\na,x\n', b"caf\xe9,label\n"])
def test_read_unreadable_header_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="header line: "):
        raw(source_of(tmp_path / "a.csv", content))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_read_damaged_stream_names_the_last_row(tmp_path: Path, kind: str, ending: str) -> None:
    noise = random.Random(0)
    rows = [(noise.randbytes(40).hex(), "x") for _ in range(8_000)]
    packed = PACK[ending](WRITERS[kind](rows))
    source = source_of(tmp_path / f"a.{kind}{ending}", packed[: len(packed) // 2])
    read = 0
    batches = read_raw(source, batch_rows=500)
    with pytest.raises(DataError, match=rf"a\.{kind}{ending}`: damaged after row [\d,]+: ") as error:  # noqa: PT012
        for batch in batches:
            read += len(batch.rows)
    reached = int(str(error.value).partition("after row ")[2].partition(":")[0].replace(",", ""))
    assert 500 < read <= reached < read + 500
    with pytest.raises(DataError, match="damaged after row 0"):
        raw(source_of(tmp_path / f"b.{kind}{ending}", b"not packed at all"))


@pytest.mark.parametrize("content", [b"PAR1", b"text,label\n", as_parquet(as_table(ROWS))[:-20]])
@pytest.mark.parametrize("ending", PACK)
def test_read_truncated_or_foreign_parquet_is_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet{ending}`: cannot be read as parquet: "):
        raw(source_of(tmp_path / f"a.parquet{ending}", PACK[ending](content)))


def test_read_parquet_damaged_inside_is_refused(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(as_table(ROWS * 1000), sink, row_group_size=1500, use_dictionary=False)
    content = bytearray(sink.getvalue().to_pybytes())
    place = pq.ParquetFile(sink.getvalue()).metadata.row_group(1).column(0).data_page_offset
    content[place : place + 40] = b"\xff" * 40
    source = source_of(tmp_path / "a.parquet", bytes(content))
    with pytest.raises(DataError, match="damaged after row 1,500: "):
        raw(source, batch_rows=1500)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_read_deleted_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        raw(Source(str(tmp_path / name), name[2:]))
    with pytest.raises(DataError, match="holds no text files"):
        raw(Source(str(tmp_path / "pos"), "text", "pos"))
