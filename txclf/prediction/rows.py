"""Predictions of texts, lines and files, batch by batch and without an output file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import raw, records
from txclf.data.detect import NOT_UTF8
from txclf.data.raw import RawBatch
from txclf.data.sources import Source, find_sources
from txclf.inference import bundle
from txclf.inference.metadata import BundleMetadata
from txclf.prediction import parts
from txclf.prediction.columns import Columns, added_columns, input_columns, load_answer, output_columns

READ_BYTES = 2**16
"""Bytes of standard input that are read at a time, if so many are there."""
BATCH_ROWS = 64
STYLE = "jsonl"
"""Format of the rows, which can hold every value of an input."""


class PredictedRows(NamedTuple):
    """Rows of a batch with their predictions."""

    columns: Columns
    raw: RawBatch
    inputs: dict[str, list[object]]
    """Values by input column."""
    added: dict[str, list[object]]
    """Values by added column; None in a row without a prediction."""
    reasons: dict[int, str]
    """Reason for each row without a prediction, by its position."""

    @property
    def texts(self) -> Iterator[str]:
        """Texts that the model reads, one per row."""
        names = [name for name in self.columns.texts if name in self.inputs] or ["text"]
        columns = [self.inputs.get(name, [None] * len(self.raw.rows)) for name in names]  # no row may be readable
        return (" ".join(str(value) for value in row if value is not None) for row in zip(*columns, strict=True))

    def json_lines(self) -> str:
        """Return the rows as JSON lines, as `--out` with the ending `.jsonl` writes them."""
        return parts.encoded(self.columns, self.raw, {**self.inputs, **self.added}).decode()


def predict(
    model: str,
    batches: Iterable[RawBatch],
    *,
    probabilities: bool = False,
    coverage: float | None = None,
    text_columns: Sequence[str] | None = None,
) -> Iterator[PredictedRows]:
    """Yield the rows of all batches with their predictions, as soon as each batch is predicted.

    Raises `ConfigError` and `DataError` as `predict.predict` does.
    """
    metadata = bundle.read_metadata(model)
    answer = load_answer(storage.absolute(model), probabilities=probabilities, lists=True, coverage=coverage)
    columns = None
    for batch in batches:
        if columns is None:
            columns = output_columns(
                metadata, batch, style=STYLE, probabilities=probabilities, texts=text_columns, coverage=coverage
            )
        inputs = input_columns(batch, columns)
        yield PredictedRows(columns, batch, inputs, *added_columns(answer, batch, columns))


def require_one_text(metadata: BundleMetadata, where: str) -> None:
    """Raise `ConfigError` if a model reads several texts per row, which a line or `--text` cannot give."""
    if len(metadata.text_columns) > 1:
        names = ", ".join(metadata.text_columns)
        raise ConfigError(
            f"{where}: the model reads {len(metadata.text_columns)} texts per row ({names}). "
            "Pass a csv or jsonl file with these columns."
        )


def of_files(inputs: Sequence[str], encoding: str = "utf-8", delimiter: str | None = None) -> Iterator[RawBatch]:
    """Yield the rows of files, globs, folders and URIs. Raises `DataError` if there is none."""
    has_rows = False
    for source in find_sources(inputs, encoding, delimiter):
        for batch in records.read_raw(source, batch_rows=BATCH_ROWS):
            has_rows = True
            yield batch
    if not has_rows:
        raise DataError(f"no row in {', '.join(inputs)}. Pass files that have rows.")


def of_texts(texts: Sequence[str]) -> Iterator[RawBatch]:
    """Yield texts as rows."""
    problems = {}
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of the command line that Python could not decode
            problems[number] = NOT_UTF8
    yield raw.make_batch(Source("--text", "text"), 0, len(texts), {"text": list(texts)}, problems)


def of_lines(stream: BinaryIO) -> Iterator[RawBatch]:
    """Yield the lines of a stream as rows, those that are there without waiting for more.

    So someone who types gets an answer per line, and a pipe is read in large batches. Raises `DataError` for a line
    that is too long.
    """
    source = Source("standard input", "text")
    done, rest = 0, b""
    read = getattr(stream, "read1", stream.read)
    while True:
        chunk = read(READ_BYTES)
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:
            lines, rest = [rest], b""
        if len(rest) > raw.MAX_CHARS:
            raise DataError(
                f"`-`: line {done + len(lines) + 1:,} has more than {raw.MAX_CHARS:,} bytes. Write one text per line."
            )
        for first in range(0, len(lines), BATCH_ROWS):
            some = lines[first : first + BATCH_ROWS]
            texts, problems = _decoded(some, first_of_stream=done == 0)
            yield raw.make_batch(source, done, len(some), {"text": list(texts)}, problems)
            done += len(some)
        if not chunk:
            return


def _decoded(lines: Sequence[bytes], *, first_of_stream: bool) -> tuple[list[str | None], dict[int, str]]:
    """Return the texts of lines, and the reasons for those that have none."""
    texts: list[str | None] = []
    problems: dict[int, str] = {}
    for position, line in enumerate(lines):
        try:
            texts.append(line.decode("utf-8-sig" if first_of_stream and not position else "utf-8").rstrip("\r"))
        except UnicodeDecodeError:
            texts.append(None)
            problems[position] = NOT_UTF8
    return texts, problems
