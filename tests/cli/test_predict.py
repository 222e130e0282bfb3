"""The predict command: files, lines and texts; tables, JSON lines and output files."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.helpers.command import TXCLF, environment
from tests.helpers.prediction import with_quantiles
from tests.helpers.serving import untrained
from txclf.cli.main import app
from txclf.core.errors import ConfigError, DataError


def test_predict_prints_rows_and_unreadable_rows(tiny_bundle: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", f"{tmp_path}/out.csv"
    source.write_text('{"text": "a fox"}\n{"text": \n{"text": "a dog"}\n')
    done = CliRunner().invoke(app, ["predict", tiny_bundle, str(source), "--out", out])
    assert done.exit_code == 0, done.output
    assert f"`{out}` (added: label, probability" in done.stdout
    assert f"`{out}`: 1 row(s) could not be read and have no prediction. See `{out}.errors.jsonl`.\n" in done.stderr


def test_predict_ray_options_need_workers(tiny_bundle: str, tmp_path: Path) -> None:
    arguments = ["predict", tiny_bundle, "in.csv", "--out", f"{tmp_path}/out.csv", "--gpus-per-worker", "1"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("--gpus-per-worker: needs Ray workers. Pass --workers")


def test_predict_texts_prints_a_row_each(tiny_bundle: str) -> None:
    done = CliRunner().invoke(app, ["predict", tiny_bundle, "--text", "a fox", "--text", "two\nlines"])
    assert done.exit_code == 0, done.output
    header, first, second, following = done.stdout.splitlines()
    assert header.split() == ["label", "probability", "text"]
    assert first.split()[0] in ("low", "mid", "high")
    assert first.rstrip().endswith("a fox")
    assert second.rstrip().endswith("two lines")
    assert following == f"next: txclf predict {tiny_bundle} INPUT --out predictions.csv"
    assert done.stderr == f"loading `{tiny_bundle}`\n"


def test_predict_lines_keep_their_places(tiny_bundle: str) -> None:
    content = "\ufeffa fox\r\n\nmétéo".encode() + b"\n\xff\nlast"
    done = CliRunner().invoke(app, ["predict", tiny_bundle, "-", "--json", "-q"], input=content)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["a fox", "", "météo", None, "last"]
    assert [row["label"] is None for row in rows] == [False, True, False, True, False]
    reason = "standard input, row 2: no text: missing or blank"
    assert done.stderr == f"2 row(s) have no prediction, the first: {reason}\n"


def test_predict_no_lines_prints_nothing(tiny_bundle: str) -> None:
    done = CliRunner().invoke(app, ["predict", tiny_bundle, "-", "--json"], input=b"")
    assert (done.exit_code, done.stdout) == (0, "")


def test_predict_files_print_what_the_output_file_holds(tiny_bundle: str, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,body\n" + "".join(f"{number},fox {number}\n" for number in range(150)))
    shared = ["predict", tiny_bundle, str(source), "--text-column", "body", "--probabilities"]
    printed = CliRunner().invoke(app, [*shared, "--json"])
    assert printed.exit_code == 0, printed.output
    written = CliRunner().invoke(app, [*shared, "--json", "--out", f"{tmp_path}/out.jsonl"])
    assert json.loads(written.stdout) == {
        "out": f"{tmp_path}/out.jsonl",
        "rows": 150,
        "bad": 0,
        "columns": ["label", "probability", "probability_low", "probability_mid", "probability_high"],
        "resumed_rows": 0,
        "advice": None,
    }
    rows, expected = (
        [json.loads(line) for line in content.splitlines()]
        for content in (printed.stdout, (tmp_path / "out.jsonl").read_text())
    )
    assert len(rows) == 150
    for row, other in zip(rows, expected, strict=True):
        assert {key: row[key] for key in ("id", "body", "label")} == {
            key: other[key] for key in ("id", "body", "label")
        }
        assert row["probability_mid"] == pytest.approx(other["probability_mid"], abs=1e-5)


def test_predict_with_probabilities_prints_the_likeliest_labels(tiny_bundle: str) -> None:
    done = CliRunner().invoke(app, ["predict", tiny_bundle, "--text", "a fox", "--probabilities"])
    first = done.stdout.splitlines()[1]
    assert all(f"{label} 0." in first for label in ("low", "mid", "high"))


def test_predict_with_coverage_prints_and_writes_the_sets(tiny_bundle: str, tmp_path: Path) -> None:
    command = ["predict", with_quantiles(tiny_bundle, tmp_path, [0.2] * 9), "--coverage", "1"]
    for option in ([], ["--probabilities"]):
        done = CliRunner().invoke(app, [*command, "--text", "a fox", *option])
        assert done.exit_code == 0, done.output
        header, first, _ = done.stdout.splitlines()
        assert header.split() == ["labels_in_set", "probability", "text"]
        assert all(label in first for label in ("low", "mid", "high"))
        assert first.rstrip().endswith("a fox")
    printed = CliRunner().invoke(app, [*command, "--text", "a fox", "--json"])
    labels = json.loads(printed.stdout)["labels_in_set"]
    assert sorted(labels) == ["high", "low", "mid"]
    (tmp_path / "in.csv").write_text('text\na fox\n" "\n')
    written = CliRunner().invoke(app, [*command, f"{tmp_path}/in.csv", "--out", f"{tmp_path}/out.csv"])
    assert "(added: label, probability, labels_in_set)" in written.stdout.replace("\n", " ")
    assert (tmp_path / "out.csv").read_text().splitlines()[1].endswith('"' + ",".join(labels) + '"')
    assert (tmp_path / "out.csv").read_text().splitlines()[2] == '" ",,,'


def test_predict_coverage_of_a_bundle_without_quantiles_is_refused(tiny_bundle: str) -> None:
    done = CliRunner().invoke(app, ["predict", tiny_bundle, "--text", "a fox", "--coverage", "0.9"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("--coverage: the model has no quantiles for prediction sets")


@pytest.mark.parametrize("task", ["multilabel", "seq2seq"])
def test_predict_other_tasks_print_their_answers(tmp_path: Path, task: str) -> None:
    model = untrained(tmp_path / "model", task=task, **({"data": {"target": "target"}} if task == "seq2seq" else {}))
    done = CliRunner().invoke(app, ["predict", model, "--text", "a fox"])
    assert done.exit_code == 0, done.output
    header, first, _ = done.stdout.splitlines()
    assert header.split() == ["labels" if task == "multilabel" else "output", "text"]
    assert first.rstrip().endswith("a fox")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no input. Name files, `-`"),
        (["-", "in.csv"], "`-`: excludes other inputs"),
        (["in.csv", "--text", "fox"], "--text: excludes input files"),
        (["-", "--out", "out.csv"], "--out: `-` is given, but it needs input files"),
        (["--text", "fox", "--out", "out.csv"], "--out: --text is given, but it needs input files"),
        (["in.csv", "--restart"], "--restart: needs an output file. Pass --out"),
        (["in.csv", "--chunk-rows", "10"], "--chunk-rows: needs an output file. Pass --out"),
        (["-", "--text-column", "body"], "--text-column: is for input files. Remove it"),
        (["--text", "fox", "--text-column", "body"], "--text-column: is for input files. Remove it"),
        (["in.csv", "--workers", "1"], "--workers: needs an output file. Pass --out"),
        (["in.csv", "--out", "out.csv", "--workers", "1000000"], "compute.workers"),
        (["in.csv", "--out", "out.csv", "--workers", "1", "--cpus-per-worker", "inf"], "compute.cpus_per_worker"),
    ],
)
def test_predict_contradicting_inputs_are_refused(tiny_bundle: str, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["predict", tiny_bundle, *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


@pytest.mark.parametrize("arguments", [["-"], ["--text", "fox"]])
def test_predict_lines_for_a_model_of_several_texts_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    model = untrained(tmp_path / "model", data={"text": ["title", "body"]})
    done = CliRunner().invoke(app, ["predict", model, *arguments])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).endswith(
        "the model reads 2 texts per row (title, body). Pass a csv or jsonl file with these columns."
    )


def test_predict_file_without_rows_is_refused(tiny_bundle: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\n")
    done = CliRunner().invoke(app, ["predict", tiny_bundle, f"{tmp_path}/in.csv"])
    assert isinstance(done.exception, DataError)
    assert "no row in" in str(done.exception)


def test_predict_on_a_terminal_answers_each_line(tiny_bundle: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [TXCLF, "predict", tiny_bundle, "-"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stdout
        for text in (b"a fox", b"a dog"):
            os.write(ours, text + b"\n")
            seen, deadline = b"", time.monotonic() + 120
            while text not in seen:
                assert time.monotonic() < deadline
                if select.select([process.stdout], [], [], 1)[0]:
                    seen += os.read(process.stdout.fileno(), 4096)
        os.write(ours, b"\x04")
        _, notes = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert b"one text per line; Ctrl-D ends" in notes
