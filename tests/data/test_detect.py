"""Encoding and delimiter of a text file, guessed from its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from txclf.core.errors import DataError
from txclf.data import detect
from txclf.data.sources import Source, find_sources

TEXTS = {
    "ascii": "a plain text",
    "utf-8": "Grüße, Привет, 你好",
    "latin-1": "Das Hörspiel für Kinder überzeugt; déjà vu, año",
    "cp1252": "It’s a “great” café – really",
    "cp1250": "Zażółć gęślą jaźń, łódź śpiewała źle",
    "cp1251": "Привет, как дела? Это хороший фильм. Москва и Ёлка",
    "koi8-r": "Привет, как дела? Это хороший фильм. Москва",
    "cp866": "Привет, как дела? Это хороший фильм.",
    "cp1253": "Καλημέρα κόσμε, αυτή είναι μια πολύ καλή ταινία",
    "cp1255": "שלום עולם זה סרט טוב מאוד",
    "cp1256": "مرحبا بالعالم هذا فيلم جيد جدا",
    "cp949": "안녕하세요 이 영화는 정말 재미있었습니다",
    "cp932": "この映画はとても面白かったです。俳優の演技も素晴らしい",
    "euc-jp": "この映画はとても面白かったです。俳優の演技も素晴らしい",
    "gb18030": "这部电影非常好看，我很喜欢。他们是最棒的。不错的一个故事在这里了",
    "big5": "這部電影非常好看，我很喜歡。他們是最棒的。不錯的一個故事在這裡了",
    "utf-16": "some text, with a mark",
    "utf-16-le": "some text, without a mark",
    "utf-16-be": "some text, without a mark",
    "utf-32": "some text, with a mark",
}


def csv_file(path: Path, content: str, encoding: str = "utf-8") -> Source:
    path.write_bytes(content.encode(encoding))
    return Source(str(path), "csv")


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("name", TEXTS)
def test_encoding_of_a_file_is_found(tmp_path: Path, name: str, rows: int) -> None:
    source = csv_file(tmp_path / "a.csv", "text,label\n" + f"{TEXTS[name]},spam\n" * rows, name)
    assert detect.encoding_of(source.path) == name


def test_encoding_of_invalid_bytes_after_the_first_block_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "BLOCK_BYTES", 100)
    (tmp_path / "a.csv").write_bytes(b"text,label\n" * 200 + "Grüße,ham\n".encode("latin-1"))
    assert detect.encoding_of(f"{tmp_path}/a.csv") == "latin-1"


def test_encoding_of_a_damaged_file_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("Grüße,ham\n".encode() * 5 + b"Gr\xfc\xdfe,ham\n")
    assert detect.encoding_of(f"{tmp_path}/a.csv") == "utf-8"
    (tmp_path / "a.csv").write_bytes("Grüße,ham\nGr".encode() + b"\xc3")
    assert detect.encoding_of(f"{tmp_path}/a.csv") == "utf-8"


def test_encoding_of_random_bytes_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(128, 256)) * 9)
    assert detect.encoding_of(f"{tmp_path}/a.csv") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\na,x\n", (",", ["text", "label"])),
        ("text;label\na, b and c;x\nd, e;y\n", (";", ["text", "label"])),
        ('"text";"label"\n"a;b";x\n', (";", ["text", "label"])),
        ("text\tlabel\na,b\tx\n", ("\t", ["text", "label"])),
        ("id|text|label\n1|a|x\n", ("|", ["id", "text", "label"])),
        ("a,b;c\n1,2;3\n1;2\n1,2,3;4\n", (";", ["a,b", "c"])),
        ("text\na;b\nc,d\n", None),
        ("", None),
    ],
)
def test_delimiter_gives_records_as_long_as_the_header(
    tmp_path: Path, content: str, expected: tuple[str, list[str]] | None
) -> None:
    assert detect.delimiter(csv_file(tmp_path / "a.csv", content), "utf-8") == expected


def test_advice_names_encoding_and_delimiter_together(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "a.csv", "Text;Art\nGrüße, Anna;ham\n", "latin-1")
    advice = detect.advice(source)
    assert advice is not None
    assert "set `data.encoding: latin-1`" in advice
    assert 'Its columns `Text`, `Art` look separated by ";": set `data.delimiter: ";"`' in advice
    (right,) = find_sources([source.path], "latin-1", ";")
    assert detect.advice(right) is None


def test_advice_of_a_missing_file_is_none(tmp_path: Path) -> None:
    assert detect.advice(Source(f"{tmp_path}/none.csv", "csv")) is None


def test_of_files_ascii_files_fit_every_encoding(tmp_path: Path) -> None:
    csv_file(tmp_path / "a.csv", "text;label\nplain;x\n")
    csv_file(tmp_path / "b.csv", "text;label\nGrüße;x\n", "latin-1")
    csv_file(tmp_path / "c.csv", "text;label\n“Grüße”;x\n", "cp1252")
    csv_file(tmp_path / "d.csv", "")
    assert detect.of_files(find_sources([str(tmp_path)])) == ("cp1252", ";")


@pytest.mark.parametrize(
    ("content", "encoding", "problem"),
    [("text,label\nПривет,x\n", "utf-8", "encoding"), ("text;label\na;x\n", "utf-8", "delimiter")],
)
def test_of_files_that_differ_raises(tmp_path: Path, content: str, encoding: str, problem: str) -> None:
    csv_file(tmp_path / "a.csv", "text,label\nGrüße,x\n", "latin-1")
    csv_file(tmp_path / "b.csv", content, encoding)
    with pytest.raises(DataError, match=rf"b\.csv`: its {problem} looks like"):
        detect.of_files(find_sources([str(tmp_path)]))


def test_of_files_folder_of_texts_is_read(tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_bytes("Grüße".encode("latin-1"))
    # Only of the files that become rows.
    (tmp_path / "good" / "deeper").mkdir()
    for name in (".hidden.txt", "_index.txt", "notes.md", "deeper/2.txt"):
        (tmp_path / "good" / name).write_text("naïve Grüße", encoding="utf-8")
    sources = [Source(str(tmp_path / label), "text", label) for label in ("good", "bad")]
    assert detect.of_files(sources) == ("latin-1", None)
