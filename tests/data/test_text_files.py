"""Rows of csv, tsv and JSON-lines files, and of folders of text files."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from pathlib import Path

import pytest

from tests.helpers.data_files import (
    PACK,
    ROWS,
    WRITERS,
    as_csv,
    as_jsonl,
    checked,
    pairs,
    put,
    raw,
    source_of,
)
from txclf.core.errors import DataError
from txclf.data.raw import MAX_CHARS, column_names
from txclf.data.records import Reject
from txclf.data.sources import Source, find_sources


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
        ([b"a,x", b'"b', b'"c"y', b"d,z"], "ad", {2: "line 4: malformed csv: ',' expected after '\"'"}),
        ([b"a,x", b'b,"y'], "a", {2: "a quoted field is never closed and runs to the end of the file, line 3"}),
        (
            [b"a,x", b'b,"y', b"and z"],
            "a",
            {2: "a quoted field is never closed and runs to the end of the file, line 4"},
        ),
        ([b"a,x", b"text,label", b"b,z"], "ab", {2: "repeats the header, as a file made of several files does"}),
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

    monkeypatch.setattr("txclf.data.raw.MAX_CHARS", 100)
    unclosed = source_of(tmp_path / "b.csv", 'text,label\na,x\n"open,y\n' + "line,z\n" * 40)
    with pytest.raises(DataError, match=r"row 2, .* line 3: line 17: a record of over 100 characters, maybe a quote"):
        checked(unclosed)
    for name in ("long.csv", "long.tsv"):
        mark = "," if name == "long.csv" else "\t"
        lines = [f"text{mark}label", f"a{mark}x", "b" * 150 + f"{mark}y", f"c{mark}z", "d" * 101 + f"{mark}y"]
        rows, rejects = checked(source_of(tmp_path / name, "\n".join(lines)), batch_rows=1)
        assert pairs(rows) == [("a", "x"), ("c", "z")]
        assert [reject.row for reject in rejects] == [2, 4]
        assert "a record of over 100 characters" in rejects[0].reason

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
        (b'{"text": "a", "label": -1e400}', "not valid JSON: -1e400 is out of the range of numbers"),
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


# -------------------------------------------------------------------------------------------------------- stray quotes


def lines_with(*changes: tuple[int, str], rows: int = 300, columns: str = "text,label", row: str = "") -> str:
    """Return a csv file whose rows are all in one line, but for the changed ones (position from 0, line)."""
    row = row or "rain wind {i},weather"
    lines = [row.format(i=i) for i in range(rows)]
    for position, line in changes:
        lines[position] = line
    return "\n".join([columns, *lines]) + "\n"


STRAY = {
    "never closed": lines_with((10, '"rain inch 5 broken,weather')),
    "never closed in the last but one row": lines_with((298, '"rain,weather')),
    "never closed with carriage returns": lines_with((10, '"rain,weather')).replace("\n", "\r\n"),
    "closed by the next quoted field": lines_with((10, '"rain,weather'), (200, '"sun, wind",weather')),
    "a pair in neighbouring rows": lines_with((10, '"rain,weather'), (11, 'rain",weather')),
    "a pair far apart": lines_with((10, '"rain,weather'), (250, 'rain",weather')),
    "a pair among labels of one digit": lines_with((10, '"rain,1'), (13, 'rain",1'), row="rain {i},1"),
    "a pair among numbered rows": lines_with((10, '10,"rain'), (30, '30,rain"'), columns="id,text", row="{i},rain {i}"),
    "a pair in a single column": lines_with((10, '"rain'), (1200, 'rain"'), rows=1300, columns="text", row="rain {i}"),
    "a pair of rows that begin with the label": lines_with(
        (10, 'ham,"rain'), (11, 'ham,rain"'), columns="label,text", row="ham,rain {i}"
    ),
    "a pair around two labels": lines_with((10, 'rain,"weather'), (11, 'sun,weather"')),
    "a pair in the label": lines_with((10, 'rain,"weather'), (20, 'rain,weather"')),
    "a pair that ends in a malformed row": lines_with((10, '"rain,weather'), (20, '"rain",weather')),
}


@pytest.mark.parametrize("case", STRAY)
@pytest.mark.parametrize("batch_rows", [3, 2048])
def test_read_csv_stray_quotes_that_enclose_rows_are_refused(tmp_path: Path, case: str, batch_rows: int) -> None:
    source = source_of(tmp_path / "a.csv", STRAY[case])
    row, line = (299, 300) if "last but one" in case else (11, 12)
    with pytest.raises(DataError, match=rf"a\.csv`: row {row}, which begins in line {line}: .* Remove the stray quote"):
        raw(source, batch_rows=batch_rows)


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir,\nthank you, and goodbye,\nyours",
        "Score: 2,1\nA great match",
        'She said ""yes"", then\r\n\r\nleft, for good',
        "a,b\n" * 9,
        "\n".join(f"Line {i} of a letter, with a comma" + ", and another" * (i % 3) for i in range(500)),
        "one\n" * 20_000,
    ],
)
@pytest.mark.parametrize("answer", ["weather", "1"])
@pytest.mark.parametrize("is_first", [True, False])
def test_read_csv_texts_of_several_lines_are_read(tmp_path: Path, text: str, answer: str, is_first: bool) -> None:
    rows = [(text.replace('""', '"'), answer)] * 3 + [("plain", "0")] * 3
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(row if is_first else row[::-1] for row in [("text", "label"), *rows])
    assert pairs(checked(Source(str(path), "csv"))[0]) == rows


# ---------------------------------------------------------------------------------------------------- header and limits


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (["v1", "v2", "", "", ""], ["v1", "v2", "column_3", "column_4", "column_5"]),
        (["", "text", " "], ["column_1", "text", "column_3"]),
        (["", "column_1"], ["column_1_", "column_1"]),
    ],
)
def test_column_names_fill_empty_ones(header: list[str], names: list[str]) -> None:
    assert column_names(header) == names


def test_read_csv_columns_without_a_name_are_read(tmp_path: Path) -> None:
    source = source_of(tmp_path / "spam.csv", "v1,v2,,,\nham,hello,,,\nspam,win,now,,\n")
    assert pairs(checked(source, ["v2"], "v1")[0]) == [("hello", "ham"), ("win", "spam")]
    (batch,) = raw(source)
    assert batch.columns["column_3"] == ["", "now"]


def test_read_csv_columns_that_are_not_asked_for_may_repeat(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.csv", "text,note,label,note\na,1,x,2\n")
    assert raw(source, ["text", "label"])[0].columns == {"text": ["a"], "label": ["x"]}
    with pytest.raises(DataError, match="column `note` comes twice"):
        raw(source)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_read_batches_of_long_rows_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("txclf.data.raw.MAX_BATCH_CHARS", 1000)
    rows = [("a" * 400, "x")] * 10
    batches = raw(source_of(tmp_path / name, WRITERS[name[2:]](rows)))
    assert [len(batch.rows) for batch in batches] == [3, 3, 3, 1]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "pos/a.txt.gz"])
def test_read_endless_line_is_one_bad_row(tmp_path: Path, name: str) -> None:
    start = {"a.csv.gz": "text,label\na,x\n", "a.tsv.gz": "text\tlabel\na\tx\n", "a.jsonl.gz": '{"text": "a"}\n'}
    content = start.get(name, "").encode() + b"x" * 5 * MAX_CHARS
    path = put(tmp_path / name, gzip.compress(content, 1))
    (source,) = find_sources([str(tmp_path) if name.startswith("pos") else path])
    batches = raw(source)
    assert [len(batch.rows) for batch in batches] == [2 if name in start else 1]
    ((position, reason),) = batches[0].problems.items()
    assert position == len(batches[0].rows) - 1
    assert "of over 16,777,216 characters" in reason


def test_read_jsonl_repeated_key_is_a_bad_row(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x", "text": "b"}', '{"text": "a", "label": "x", "more": {"n": 1, "n": 2}}']
    lines.append(r'{"text": "a", "label": "x", "\udc00": 1, "\udc00": 2}')
    rows, rejects = checked(source_of(tmp_path / "a.jsonl", "\n".join([*lines, '{"text": "a", "label": "x"}'])))
    assert pairs(rows) == [("a", "x")]
    assert [reject.reason for reject in rejects] == [
        "key `text` comes twice",
        "key `n` comes twice",
        "key `\\udc00` comes twice",
    ]


ENCODINGS = ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "cp1251", "gb18030", "cp932"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz"])
def test_read_rows_in_an_encoding_equal_those_in_utf8(tmp_path: Path, encoding: str, ending: str) -> None:
    text = {"latin-1": "schön", "cp1252": "“schön”", "cp1251": "Привет"}.get(encoding, "映画 です")
    rows = [(text, "x"), ("plain", text)] * 9
    kind, _, packed = ending.partition(".")
    content = WRITERS[kind](rows).decode("unicode_escape" if kind == "jsonl" else "utf-8")
    put(tmp_path / f"a.{ending}", PACK[f".{packed}" if packed else ""](content.encode(encoding)))
    (source,) = find_sources([f"{tmp_path}/a.{ending}"], encoding)
    found, rejects = checked(source)
    assert rejects == []
    assert pairs(found) == rows


def test_read_rows_other_delimiter_is_for_csv_only(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", 'text;label\n"a;b, c";x\n')
    put(tmp_path / "b.tsv", "text\tlabel\na;b\ty\n")
    one, two = find_sources([f"{tmp_path}/a.csv", f"{tmp_path}/b.tsv"], delimiter=";")
    assert pairs(checked(one)[0]) + pairs(checked(two)[0]) == [("a;b, c", "x"), ("a;b", "y")]


def test_read_rows_bytes_outside_of_the_encoding_are_rejected(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", b"text,label\na\x81b,x\nfine,y\n")
    (source,) = find_sources([f"{tmp_path}/a.csv"], "cp1252")
    rows, rejects = checked(source)
    assert (pairs(rows), rejects) == ([("fine", "y")], [Reject(source.path, 1, "not valid cp1252")])
    put(tmp_path / "a.csv", "text,label\na,x\n".encode("utf-16") + b"b")
    (source,) = find_sources([f"{tmp_path}/a.csv"], "utf-16")
    assert [reject.reason for reject in checked(source)[1]] == ["expected 2 fields, found 1"]


def test_read_rows_folder_of_texts_in_an_encoding(tmp_path: Path) -> None:
    put(tmp_path / "pos" / "1.txt", "schön".encode("latin-1"))
    (source,) = find_sources([str(tmp_path)], "latin-1")
    assert pairs(checked(source)[0]) == [("schön", "pos")]


def test_read_rows_wrong_encoding_or_delimiter_names_the_right_one(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", "text;label\nGrüße;x\n".encode("utf-16"))
    for encoding, problem in (("utf-8", "header line: not valid UTF-8"), ("utf-32", "not valid utf-32")):
        (source,) = find_sources([f"{tmp_path}/a.csv"], encoding)
        with pytest.raises(DataError, match=rf"{problem}.*set `data\.encoding: utf-16`.*`data\.delimiter: \";\"`"):
            checked(source)


def test_read_csv_repeated_header_with_a_byte_order_mark_is_no_row(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.csv", as_csv(ROWS).decode() + "\n\ufeff" + as_csv(ROWS[:1]).decode())
    rows, rejects = checked(source)
    assert pairs(rows) == [*ROWS, ROWS[0]]
    assert [reject.row for reject in rejects] == [len(ROWS) + 1]
    assert rejects[0].reason.startswith("repeats the header")


def test_read_csv_quotes_after_a_backslash_are_named(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.csv", 'text,label\n"he said \\"no\\" again",pos\nfine,neg\n')
    rows, rejects = checked(source)
    assert pairs(rows) == [("fine", "neg")]
    assert rejects[0].reason.endswith("a quote inside a quoted text is written twice, not after a backslash")


def test_read_jsonl_rows_of_ever_new_keys_raise(tmp_path: Path) -> None:
    lines = [json.dumps({f"{row}-{key}": 0 for key in range(300)}) for row in range(1_000)]
    source = source_of(tmp_path / "a.jsonl", "\n".join(lines))
    with pytest.raises(DataError, match=r"300,000 different keys in the 1,000 rows after row 0"):
        raw(source)


def test_column_names_of_a_wide_header_take_no_time() -> None:
    assert len(set(column_names([""] * 200_000))) == 200_000
