"""Command that predicts files, lines and texts: predict."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands, Json
from txclf.cli.export import Model
from txclf.cli.results import Address, CpusPerWorker, GpusPerWorker, connected_workers
from txclf.core import text as texts
from txclf.core.errors import ConfigError
from txclf.core.signals import stop_signals

if TYPE_CHECKING:
    from txclf.config.sections import Compute
    from txclf.data.raw import RawBatch
    from txclf.prediction.rows import PredictedRows

STDIN = "-"
"""Input that stands for the lines of standard input."""
MAX_LABELS = 3
"""Labels of a row that are printed with `--probabilities`; `--json` has all."""
MAX_ANSWER = 36
"""Characters of an answer in the table."""

UTF8 = "utf-8"
Encoding = Annotated[str, typer.Option("--encoding", help="Encoding of text files, such as `latin-1`.")]
Delimiter = Annotated[
    str | None, typer.Option("--delimiter", help="Character between the columns of csv files; a comma if not given.")
]

commands = Commands()


@commands.command()
def predict(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Files, globs, folders or URIs; `-` reads a text per line of stdin."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Output file: .csv, .tsv, .jsonl (also .gz, .zst) or .parquet. Without it, print."),
    ] = None,
    *,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to predict, instead of inputs.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column with the probability of each label.")
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option("--coverage", help="Add the labels among which the true one is with this probability, as 0.95."),
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option("--text-column", help="Text column(s) of the inputs, if they differ from the training data's."),
    ] = None,
    encoding: Encoding = UTF8,
    delimiter: Delimiter = None,
    as_json: Json = False,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Ray workers; 0 predicts in this process, without Ray.")
    ] = 0,
    cpus: CpusPerWorker = None,
    gpus: GpusPerWorker = None,
    address: Address = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option("--chunk-rows", min=1, help="Rows per chunk (4096); an interrupted chunk is predicted again."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over instead of resuming an interrupted prediction.")
    ] = False,
) -> None:
    """Predict each row of the inputs: print label and probability, or write them with the input's columns.

    With `--out`, an interrupted prediction resumes if the command is run again with the same arguments.
    """
    from txclf.config import run_config

    compute = run_config.worker_compute(workers, {"cpus_per_worker": cpus, "gpus_per_worker": gpus, "address": address})
    if out is None:
        for option, is_given in (
            ("--workers", compute),
            ("--restart", restart),
            ("--chunk-rows", chunk_rows),
        ):
            if is_given:
                raise ConfigError(f"{option}: needs an output file. Pass --out with it.")
        if text_column and (text or STDIN in (inputs or [])):
            raise ConfigError("--text-column: is for input files. Remove it; a text has no columns.")
        batches = _batches(model, inputs or [], text, encoding, delimiter)
        _print_rows(model, batches, probabilities, coverage, text_column, as_json=as_json)
        return
    if text or not inputs or STDIN in inputs:
        what = "--text" if text else f"`{STDIN}`" if inputs else "no input"
        raise ConfigError(f"--out: {what} is given, but it needs input files. Redirect `--json > rows.jsonl` instead.")
    _write_file(
        model,
        inputs,
        out,
        probabilities=probabilities,
        coverage=coverage,
        text_columns=text_column,
        encoding=encoding,
        delimiter=delimiter,
        compute=compute,
        chunk_rows=chunk_rows,
        restart=restart,
    )


def _batches(
    model: str, inputs: Sequence[str], text: Sequence[str] | None, encoding: str, delimiter: str | None
) -> Iterator[RawBatch]:
    """Return the rows to print: those of the texts, of standard input or of the files."""
    from txclf.inference import bundle
    from txclf.prediction import rows

    if text and inputs:
        raise ConfigError("--text: excludes input files. Pass one of the two.")
    if (text or STDIN in inputs) and (encoding, delimiter) != (UTF8, None):
        raise ConfigError("--encoding, --delimiter: are for input files. Convert other input to UTF-8, as by `iconv`.")
    if text:
        rows.require_one_text(bundle.read_metadata(model), "--text")
        return rows.of_texts(text)
    if not inputs:
        raise ConfigError("no input. Name files, `-` for the lines of standard input, or pass --text TEXT.")
    if STDIN not in inputs:
        return rows.of_files(inputs, encoding, delimiter)
    if len(inputs) > 1:
        raise ConfigError(f"`{STDIN}`: excludes other inputs. Pass one of the two.")
    rows.require_one_text(bundle.read_metadata(model), f"`{STDIN}`")
    if sys.stdin.isatty():
        lines.note("one text per line; Ctrl-D ends")
    return rows.of_lines(sys.stdin.buffer)


def _print_rows(
    model: str,
    batches: Iterator[RawBatch],
    probabilities: bool,
    coverage: float | None,
    text_columns: Sequence[str] | None,
    *,
    as_json: bool,
) -> None:
    """Print each batch when it is predicted, then report the rows without a prediction."""
    from txclf.inference import bundle
    from txclf.prediction import rows

    labels = bundle.read_metadata(model).labels
    lines.note(f"loading `{model}`")
    printed, bad, first = 0, 0, ""
    predicted = rows.predict(model, batches, probabilities=probabilities, coverage=coverage, text_columns=text_columns)
    for batch in predicted:
        if as_json:
            lines.json_lines(batch.json_lines())
        else:
            with_sets = coverage is not None
            _print_table(batch, labels, probabilities=probabilities, with_sets=with_sets, with_header=not printed)
        printed += len(batch.raw.rows)
        if batch.reasons and not bad:
            position = min(batch.reasons)
            first = f"{batch.raw.files[position]}, row {batch.raw.rows[position]:,}: {batch.reasons[position]}"
        bad += len(batch.reasons)
    if bad:
        lines.err(f"{bad:,} row(s) have no prediction, the first: {first}")
    if not as_json:
        lines.next_steps(f"txclf predict {shlex.quote(model)} INPUT --out predictions.csv")


def _print_table(
    batch: PredictedRows, labels: Sequence[str], *, probabilities: bool, with_sets: bool, with_header: bool
) -> None:
    """Print a row per line: the answer, its probability, and the beginning of the text.

    A prediction set is shown as the answer, because its first label is the most probable one.
    """
    from rich.table import Table
    from rich.text import Text

    from txclf.cli import console

    names = list(batch.added)
    with_probability = len(names) > 1 and names[1].endswith("probability")
    shown = Table(box=None, show_header=with_header, header_style="bold", pad_edge=False)
    # The widths follow from the model alone, so that the tables of all batches have the same.
    is_label = with_probability and not probabilities and not with_sets
    widest = max((len(label) for label in labels), default=0) if is_label else MAX_ANSWER
    answers = 2 if with_sets else 0
    width = min(MAX_ANSWER, max(widest, len(names[answers])))
    shown.add_column(names[answers], width=width, no_wrap=True)
    if with_probability:
        shown.add_column("probability", width=len("probability"), justify="right", no_wrap=True)
    room = console.out.width - width - 2 - (len("probability  ") if with_probability else 0)
    shown.add_column("text", max_width=max(len("text"), room), no_wrap=True)
    for position, text in enumerate(batch.texts):
        values = [column[position] for column in batch.added.values()]
        found = values[answers]
        answer = ", ".join(found) if isinstance(found, list) else found
        if probabilities and found is not None:
            count = len(found) if with_sets and isinstance(found, list) else MAX_LABELS
            answer = _likeliest(labels, values[-len(labels) :], count)
        cells = ["-" if answer is None else str(answer)]
        if with_probability:
            cells.append("" if values[1] is None else f"{values[1]:.4f}")
        cells.append(" ".join(text.split()))
        shown.add_row(*(Text(texts.shown(cell, console.WIDTH)) for cell in cells))
    console.show(shown)


def _likeliest(labels: Sequence[str], probabilities: Sequence[object], count: int) -> str:
    """Return the `count` most probable labels with their probabilities, as text."""
    pairs = sorted(zip(probabilities, labels, strict=True), key=lambda pair: -float(str(pair[0])))
    return ", ".join(f"{label} {value:.2f}" for value, label in pairs[:count])


def _write_file(
    model: str,
    inputs: Sequence[str],
    out: str,
    *,
    probabilities: bool,
    coverage: float | None,
    text_columns: Sequence[str] | None,
    encoding: str,
    delimiter: str | None,
    compute: Compute | None,
    chunk_rows: int | None,
    restart: bool,
) -> None:
    """Predict files into an output file and print the number of rows."""
    from txclf.cli import console, displays
    from txclf.core import storage
    from txclf.prediction import parts
    from txclf.prediction import predict as verb

    started = time.monotonic()
    lines.note(f"predicting with `{model}`")
    with connected_workers(compute, storage.folder_of(out)), console.Bar("predicting") as bar, _exit_on_signal(out):
        display = displays.PredictionDisplay(bar, started)
        summary = verb.predict(
            model,
            inputs,
            out=out,
            probabilities=probabilities,
            coverage=coverage,
            text_columns=text_columns,
            encoding=encoding,
            delimiter=delimiter,
            on_progress=display.show,
            compute=compute,
            chunk_rows=chunk_rows or parts.CHUNK_ROWS,
            restart=restart,
        )
    resumed = f" ({summary.resumed_rows:,} of them by an earlier command)" if summary.resumed_rows else ""
    rate = display.rate(summary.rows - summary.resumed_rows)
    lines.out(f"{summary.rows:,} rows{resumed}, {rate} rows/s: `{out}` (added: {texts.listed(summary.columns, '')})")
    if summary.bad:
        lines.err(
            f"`{out}`: {summary.bad:,} row(s) could not be read and have no prediction. "
            f"See `{storage.named_like(out, '.errors.jsonl')}`."
            f"{f' {summary.advice}' if summary.advice else ''}"
        )
    if lines.mode.as_json:
        lines.result({"out": out, **asdict(summary)})


@contextmanager
def _exit_on_signal(out: str) -> Iterator[None]:
    """End the command with a message on the first stop signal."""
    with stop_signals(max_collected=0):
        try:
            yield
        except SystemExit:
            lines.err(f"`{out}`: stopped, and the finished chunks are saved. Run the same command again to resume.")
            raise
