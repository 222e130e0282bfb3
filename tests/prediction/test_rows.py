"""Predictions without an output file: rows of texts, lines and files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from txclf.core.errors import DataError
from txclf.data import raw
from txclf.prediction import rows


class Pipe(io.RawIOBase):
    """Stream that gives the pieces of its content one at a time, as a pipe or a terminal does."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def texts(*pieces: bytes) -> list[list[str]]:
    """Return the texts of each batch of lines."""
    return [batch.columns["text"] for batch in rows.of_lines(Pipe(*pieces))]  # type: ignore[arg-type]


def test_of_lines_are_batches_of_what_is_there() -> None:
    assert texts(b"one\ntwo\nth", b"ree\n", b"four") == [["one", "two"], ["three"], ["four"]]
    assert texts() == []
    many = texts(b"a\n" * (rows.BATCH_ROWS + 3))
    assert list(map(len, many)) == [rows.BATCH_ROWS, 3]


def test_of_lines_a_character_between_two_reads_is_whole() -> None:
    content = "météo\n".encode()
    assert texts(content[:2], content[2:]) == [["météo"]]


def test_of_lines_numbers_rows_from_1() -> None:
    batches = list(rows.of_lines(Pipe(b"one\ntwo\n", b"three\n")))  # type: ignore[arg-type]
    assert [batch.rows for batch in batches] == [[1, 2], [3]]


def test_of_lines_without_an_end_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_CHARS", 100)
    with pytest.raises(DataError, match=r"`-`: line 2 has more than 100 bytes"):
        texts(b"one\n", *[b"x" * 60] * 5)


def test_predict_texts_of_several_columns_are_joined(tiny_bundle: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a fox", "id": 3}\n{"id": 4}\n')
    (batch,) = rows.predict(tiny_bundle, rows.of_files([f"{tmp_path}/in.jsonl"]))
    assert list(batch.texts) == ["a fox", ""]
    assert batch.added["label"][1] is None
    assert batch.reasons == {1: "no text: missing or blank"}


def test_predict_file_without_a_readable_row_has_reasons(tiny_bundle: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('[{"text": "a fox"}]\n')
    (batch,) = rows.predict(tiny_bundle, rows.of_files([f"{tmp_path}/in.jsonl"]))
    assert list(batch.texts) == [""]
    assert "expected an object" in batch.reasons[0]


def test_of_texts_bytes_that_are_no_characters_are_a_problem_of_their_row() -> None:
    (batch,) = rows.of_texts(["fox", "caf\udce9"])  # as Python reads a command line that is not UTF-8
    assert batch.columns == {"text": ["fox", None]}
    assert batch.problems == {1: "not valid UTF-8"}
