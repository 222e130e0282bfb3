"""Encoding and delimiter of a text file, guessed from its bytes, for `inspect`, `init` and messages of errors."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice

from txclf.core.errors import DataError
from txclf.core.text import listed, shown
from txclf.data.sources import Source, ending, fault, open_stream, text_files

NOT_UTF8 = "not valid UTF-8"
DECLARATION = re.compile(r'"?sep=(.)"?[\r\n]*')
"""First line of a csv file that names the delimiter for spreadsheets."""
BLOCK_BYTES = 2**20
"""Bytes that are decoded at once. An encoding other than UTF-8 is guessed from one block."""
MAX_BLOCKS = 256
"""Blocks after which a file counts as UTF-8."""
HEAD_CHARS = 2**18
"""Characters from which a delimiter is guessed."""
HEAD_RECORDS = 200
MAX_FOLDER_FILES = 200
"""Files of a folder of text files from which its encoding is guessed."""
DELIMITERS = (",", ";", "\t", "|")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and their encodings."""
MAX_WESTERN_RUN = 2.5
"""Mean length of runs of bytes above 127 up to which a text is in the Latin script."""
MIN_SHARE = 0.7
"""Share of the characters outside ASCII that must be usual in the texts of an encoding."""
_LETTERS = "«»°§£¡¿ªº¼½¾À-ÖØ-öø-ÿ"
_WESTERN = (
    ("latin-1", rf"[{_LETTERS}©®´·¢]"),
    ("cp1252", rf"[{_LETTERS}©®´·¢€‚„…†‡‰Š‹ŒŽ‘’“”•–—™š›œžŸ]"),
    ("cp1250", "[À-ÖØ-öø-ÿĀ-ſ€„…‘’“”•–—]"),
)
_CYRILLIC = r"[а-яёіїєґ]|\b[А-ЯЁІЇЄҐ]|[«»№—–„“”…]"
_KANA = "[\u3041-\u30ff\u3001\u3002\uff01\uff1f]"
_CHINESE = "[的一是不了在人有我他这這，。！？、]"
_OTHER = (
    ("cp1255", "[א-ת]", MIN_SHARE),  # first, because Russian has letters outside of it
    ("cp1251", _CYRILLIC, MIN_SHARE),
    ("koi8-r", _CYRILLIC, MIN_SHARE),
    ("cp866", _CYRILLIC, MIN_SHARE),
    ("cp1253", r"[ά-ώ]|\b[Α-Ω]", MIN_SHARE),
    ("cp1256", "[ء-ي،؟]", MIN_SHARE),
    ("cp949", "[가-힣]", 0.8),
    ("cp932", _KANA, 0.3),
    ("euc-jp", _KANA, 0.3),
    ("gb18030", _CHINESE, 0.1),
    ("big5", _CHINESE, 0.1),
)
"""Encodings, their usual characters, and the least share of these."""


def encoding_of(path: str) -> str | None:
    """Return the encoding of a file: `ascii`, `utf-8`, or a guess; None if none fits.

    A file with more valid than invalid characters of UTF-8 is a damaged file of UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_ascii, valid = True, 0
    with fault(path, "cannot be read"), open_stream(path) as stream:
        for number in range(MAX_BLOCKS):
            block = stream.read(BLOCK_BYTES)
            if number == 0 and (found := _unicode(block)):
                return found
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                text = block.decode("utf-8", "surrogateescape")
                invalid = len(re.findall("[\udc80-\udcff]", text))
                valid += len(re.findall("[^\0-\x7f\udc80-\udcff]", text))
                return "utf-8" if valid > invalid or not block else _legacy(block)
            if not block.isascii():
                is_ascii = False
                valid += sum(character > "\x7f" for character in text)
            if not block:
                break
    return "ascii" if is_ascii else "utf-8"


def _unicode(block: bytes) -> str | None:
    """Return the encoding of a byte order mark, or UTF-16 if every other byte is zero."""
    for mark, name in MARKS:
        if block.startswith(mark):
            return name
    even, odd = block[:1024:2], block[1:1024:2]
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if len(zeros) > 1 and zeros.count(0) > 0.5 * len(zeros) and not others.count(0):
            return name
    return None


def _legacy(block: bytes) -> str | None:
    """Return the encoding other than UTF-8 in which the most characters are usual ones."""
    runs = re.findall(rb"[\x80-\xff]+", block)
    block = block[: block.rfind(b"\n") + 1] or block
    best: tuple[float, str] | None = None
    if sum(map(len, runs)) <= MAX_WESTERN_RUN * len(runs):
        candidates: Sequence[tuple[str, str, float]] = [(name, usual, MIN_SHARE) for name, usual in _WESTERN]
    else:
        candidates = _OTHER
    for name, usual, least in candidates:
        others = "".join(re.findall(r"[^\0-\x7f]|\s", block.decode(name, "replace")))
        count = len(re.sub(r"\s+", "", others))
        share = sum(not found.isspace() for found in re.findall(usual, others)) / max(1, count)
        share = share / least if "\ufffd" not in others else share / least * 0.5
        if share >= 1 and (best is None or share > best[0]):
            best = (share, name)
    return best[1] if best else None


def delimiter(source: Source, encoding: str | None) -> tuple[str, list[str]] | None:
    """Return the delimiter of a csv file, with which its records have as many fields as the header, and the header.

    None if no delimiter gives several fields.
    """
    with fault(source.path, "cannot be read"), open_stream(source.path) as stream:
        content = stream.read(4 * HEAD_CHARS)
    text = content.decode(encoding or "utf-8", "replace").removeprefix("\ufeff")[:HEAD_CHARS]
    if len(content) == 4 * HEAD_CHARS or len(text) == HEAD_CHARS:
        text = text[: text.rfind("\n") + 1]
    first, end, rest = text.partition("\n")
    if declared := DECLARATION.fullmatch(first + end):
        header = next(csv.reader(io.StringIO(rest, ""), delimiter=declared[1]), [])
        return (declared[1], header) if len(header) > 1 else None
    best: tuple[float, str, list[str]] | None = None
    for character in DELIMITERS:
        records: list[list[str]] = []
        with suppress(csv.Error):  # of a field over the limit of the module
            records.extend(islice(filter(None, csv.reader(io.StringIO(text, ""), delimiter=character)), HEAD_RECORDS))
        width = len(records[0]) if records else 0
        share = sum(len(record) == width for record in records) / max(1, len(records))
        if width > 1 and (best is None or share > best[0]):
            best = share, character, records[0]
    return best and best[1:]


def advice(source: Source) -> str | None:
    """Return how to set the encoding and the delimiter of a text file that was read with others, or None."""
    problems, encoding = [], source.encoding
    with suppress(DataError):  # of a file that can no longer be read
        if source.format not in ("parquet", "text"):
            found = encoding_of(source.path)
            western = {codecs.lookup(name).name for name in ("latin-1", "cp1252")}  # the header tells no difference
            is_read = {codecs.lookup(name).name for name in (found or encoding, encoding)} <= western
            if found not in (None, "ascii") and not is_read and not _is_same(found, encoding):
                problems, encoding = [encoding_advice(found)], found
        likely = delimiter(source, encoding) if source.format == "csv" else None
        if likely and likely[0] != (source.delimiter or ","):
            mark = quoted(likely[0])
            problems.append(
                f"Its columns {listed(likely[1])} look separated by {mark}: set `data.delimiter: {mark}` "
                f"(predict, drift: --delimiter {mark}; evaluate: convert the file)."
            )
    return " ".join(problems) or None


def quoted(character: str) -> str:
    """Return a delimiter as YAML and shells read it."""
    return '"\\t"' if character == "\t" else f'"{character}"'


def advice_for_rows(rejects: Iterable[tuple[str, int, str]], encoding: str) -> str | None:
    """Return how to set the encoding for rows (file, row, reason) that are not valid in `encoding`, or None."""
    path = next((file for file, _, reason in rejects if reason == undecodable(encoding)), None)
    found = encoding_of(path) if path is not None and ending(path)[0] != "parquet" else None
    return encoding_advice(found) if found not in (None, "ascii") and not _is_same(found, encoding) else None


def encoding_advice(found: str) -> str:
    """Return how to set an encoding."""
    options = f"predict, drift: --encoding {found}; evaluate: convert the file"
    return f"It looks like {found}: set `data.encoding: {found}` ({options})."


def of_files(sources: Sequence[Source]) -> tuple[str, str | None]:
    """Return the encoding and the delimiter with which some files can be read.

    Raises `DataError` if they need different ones, because a run reads all its files in the same way.
    """
    encodings: dict[str, str] = {}
    delimiters: dict[str, str] = {}
    for source in sources:
        if source.format == "parquet":
            continue
        paths = text_files(source.path)[:MAX_FOLDER_FILES] if source.format == "text" else [source.path]
        for path in paths:
            found = encoding_of(path)
            if found not in (None, "ascii"):
                encodings.setdefault(found, path)
        if source.format == "csv" and (likely := delimiter(source, encoding_of(source.path))):
            delimiters.setdefault(likely[0], source.path)
    if encodings.keys() == {"latin-1", "cp1252"}:
        del encodings["latin-1"]  # a part of the other
    for kinds, what in ((encodings, "encoding"), (delimiters, "delimiter")):
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            raise DataError(
                f"`{second}`: its {what} looks like `{shown(other)}`, that of `{first}` like `{shown(one)}`. "
                "A run reads all files alike: convert one of them."
            )
    character = next(iter(delimiters), ",")
    return next(iter(encodings), "utf-8"), None if character == "," else character


def is_utf8(encoding: str) -> bool:
    """Return True for UTF-8 by any of its names."""
    return codecs.lookup(encoding).name == "utf-8"


def undecodable(encoding: str) -> str:
    """Return the reason of a row whose bytes are not valid in an encoding."""
    return NOT_UTF8 if is_utf8(encoding) else f"not valid {encoding}"


def _is_same(one: str, other: str) -> bool:
    return codecs.lookup(one).name == codecs.lookup(other).name
