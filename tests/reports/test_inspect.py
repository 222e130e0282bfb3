"""`txclf inspect` on raw files of each format and on each folder that txclf makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.command import TXCLF, environment
from tests.helpers.files import make_rows, write_csv
from tests.helpers.reports import search_folder
from tests.helpers.runs import TINY, go_on, stopped_at
from txclf.artifacts.run_folder import RunState
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data import profile, shards
from txclf.data.prepare import prepare
from txclf.reports.inspect import _total_steps, inspect
from txclf.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("inspect")
    data = write_csv(folder / "train.csv", make_rows(200))
    run = run_config.load(None, [*TINY, f"data.train={data}", f"storage={folder}/runs", "name=mine"])
    train(run, prepare(run), go_on)
    return run


def rows_by_label(found: dict[str, Any]) -> dict[str, int]:
    return {entry["label"]: entry["rows"] for entry in found["label_rows"]}


def test_inspect_raw_data_is_audited(tmp_path: Path) -> None:
    rows = [(f"a text of its own {number}", "a" if number % 20 else "b") for number in range(100)]
    rows += [("a duplicate", "a"), ("a duplicate", "a"), ("a conflicting text", "a"), ("a conflicting text", "b")]
    rows += [("", "a"), ("no label", "")]
    path = write_csv(tmp_path / "reviews.csv", rows)
    found = inspect(path)
    assert (found["kind"], found["text"], found["label"], found["formats"]) == ("data", ["text"], "label", ["csv"])
    assert (found["rows"], found["bad_rows"], found["duplicates"], found["conflicting_texts"]) == (104, 2, 2, 1)
    assert rows_by_label(found) == {"a": 98, "b": 6}
    assert [(example["row"], example["label"]) for example in found["conflict_examples"]] == [(103, "a"), (104, "b")]
    assert [example["row"] for example in found["bad_examples"]] == [105, 106]
    assert found["words"] == {"shortest": 2, "median": 6, "p90": 6, "p99": 6, "longest": 6}
    assert found["all_rows_read"] is True
    suggested = found["suggested"]
    assert suggested["data"] == {"train": path, "on_bad_row": "skip"}
    assert suggested["train"] == {"monitor": "valid_f1_macro"}  # the other keys follow from the rows


def test_inspect_raw_data_suggests_a_run_file_that_prepares(tmp_path: Path) -> None:
    table = {
        "id": list(range(60)),
        "headline": [f"the market rose by {number} today" for number in range(60)],
        "topic": ["sport", "money", "world"] * 20,
        "score": [number / 7 for number in range(60)],
    }
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    found = inspect(str(tmp_path))
    assert (found["text"], found["label"], found["rows"]) == (["headline"], "topic", 120)
    data = found["suggested"]["data"]
    assert data["text"] == ["headline"]
    assert data["label"] == "topic"
    assert data["train"].endswith("/train.parquet")
    assert data["test"].endswith("/test.parquet")
    run = run_config.parse({**found["suggested"], "storage": str(tmp_path / "runs")})
    manifest = storage.read_json(storage.join(prepare(run), "manifest.json"))
    assert manifest["labels"] == ["money", "sport", "world"]
    assert manifest["splits"]["test"]["rows"] == 60


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        ({"text": ["a b c"] * 9, "label": ["x", "y", "z"] * 3}, "text", "label"),
        ({"Label": [0, 1, 2] * 3, "Sentence": ["a b c"] * 9}, "Sentence", "Label"),
        ({"a": ["long strings here"] * 9, "b": ["x", "y", "x"] * 3}, "a", "b"),
        ({"text": [f"text {n}" for n in range(9)], "score": [n / 3 for n in range(9)]}, "text", None),
        ({"text": ["only a text"] * 9}, "text", None),
    ],
)
def test_inspect_columns_are_guessed(
    tmp_path: Path, columns: dict[str, list[Any]], text: str, label: str | None
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = inspect(str(tmp_path / "x.parquet"))
    assert (found["text"], found["label"]) == ([text], label)
    assert [entry["column"] for entry in found["columns"]] == list(columns)


def test_inspect_raw_columns_can_be_named(tmp_path: Path) -> None:
    table = {"text": ["a", "b"] * 5, "title": ["the title", "another"] * 5, "label": ["x", "y"] * 5, "kind": [1, 2] * 5}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    found = inspect(str(tmp_path / "x.parquet"), ["title", "text"], "kind")
    assert (found["text"], found["label"]) == (["title", "text"], "kind")
    assert rows_by_label(found) == {"1": 5, "2": 5}
    assert found["label_kinds"] == ["integer"]
    with pytest.raises(DataError, match="no column `none`"):
        inspect(str(tmp_path / "x.parquet"), ["none"])


def test_inspect_lists_of_labels_suggest_multilabel(tmp_path: Path) -> None:
    table = {"text": [f"text {number}" for number in range(10)], "labels": [["a"], ["a", "b"]] * 5}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    found = inspect(str(tmp_path / "x.parquet"))
    assert "several labels" in found["note"]
    run = run_config.parse(found["suggested"])
    assert (run.task, run.data.label) == ("multilabel", "labels")
    assert (found["rows"], found["bad_rows"]) == (10, 0)
    assert found["label_rows"] == [{"label": "a", "rows": 10}, {"label": "b", "rows": 5}]


def test_inspect_folder_of_text_files_takes_labels_from_folders(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "mail" / ("ham" if number % 2 else "spam") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mail number {number}")
    found = inspect(str(tmp_path / "mail"))
    assert (found["formats"], found["files"]) == (["text"], 2)
    assert rows_by_label(found) == {"ham": 3, "spam": 3}
    assert found["suggested"]["data"]["train"] == str(tmp_path / "mail")


def test_inspect_more_than_max_rows_reads_whole_files_up_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MAX_ROWS", 3000)
    paths = [write_csv(tmp_path / f"{name}.csv", make_rows(2500, seed=n)) for n, name in enumerate("abc")]
    found = inspect(str(tmp_path))
    assert len(paths) == found["files"] == 3
    assert 3000 <= found["rows"] < 7500
    assert found["all_rows_read"] is False


def test_inspect_run_reports_its_progress(tmp_path: Path, run: RunConfig) -> None:
    found = inspect(run.run_folder)
    summary = storage.read_json(storage.join(run.run_folder, "summary.json"))
    assert (found["kind"], found["state"], found["name"]) == ("run", "finished", "mine")
    assert found["step"] == found["total_steps"] == summary["steps"]
    assert found["best"]["step"] == summary["best_step"]
    assert found["next"][0] == f"txclf report {run.run_folder}"

    files = run.data.train
    assert files
    stopped = run_config.load(None, [*TINY, f"data.train={files[0]}", f"storage={tmp_path}", "name=stopped"])
    stopped_at(stopped, 7)
    found = inspect(stopped.run_folder)
    assert (found["state"], found["total_steps"]) == ("begun", summary["steps"])
    assert 7 <= found["step"] < summary["steps"]
    validated = found["step"] >= summary["steps"] // 2  # the run stops some steps later, possibly after a validation
    assert (found["best"] is not None) == validated
    assert found["checkpoints"] == [found["step"]]
    assert 0 <= found["seconds_since_last_line"] < 600
    assert found["next"][0] == f"txclf train {stopped.run_folder}/run.yaml --resume"


def test_total_steps_distilled_run_counts_its_unlabelled_rows(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", make_rows(200))
    more = write_csv(tmp_path / "more.csv", [(f"another text {number}",) for number in range(100)], header=["text"])
    words = [f"data.train={data}", f"data.unlabelled={more}", f"distill.teacher={tmp_path}", f"storage={tmp_path}/runs"]
    run = run_config.load(None, [*TINY, *words])
    prepared = prepare(run)
    manifest = shards.load_manifest(prepared)
    rows = manifest.splits["train"].rows + 100
    state = RunState(run.run_folder, run, None, [], prepared, manifest, 0)
    assert _total_steps(state) == rows // 16 * 2


def test_inspect_prepared_data_bundle_and_search_report_their_content(tmp_path: Path, run: RunConfig) -> None:
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    found = inspect(prepared)
    assert (found["kind"], found["labels"]) == ("prepared", 2)
    assert sum(split["rows"] for split in found["splits"]) == 200
    found = inspect(storage.join(run.run_folder, "model"))
    assert (found["kind"], found["task"], found["label_names"]) == ("bundle", "classify", ["neg", "pos"])
    search = search_folder(tmp_path)
    found = inspect(search.run_folder)
    assert (found["kind"], found["state"], found["states"]) == ("search", "not finished", {"finished": 3, "stopped": 3})
    assert found["best"]["trial"] == 5
    assert found["next"][0].endswith("run.yaml --resume")
    trial = storage.join(search.run_folder, "trials", "0000")
    with pytest.raises(DataError):
        inspect(trial)  # a trial that has not started has no run.yaml


@pytest.mark.parametrize(
    ("name", "message"), [("runs", "a folder of 1 run"), ("empty", "holds neither"), ("no", "no such")]
)
def test_inspect_any_other_path_is_an_error(run: RunConfig, name: str, message: str) -> None:
    folder = Path(run.storage)
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        inspect(str(folder if name == "runs" else folder / name))


def test_command_json_equals_the_function_and_errors_exit_with_2(run: RunConfig, tmp_path: Path) -> None:
    def inspected(*words: str) -> subprocess.CompletedProcess[str]:
        words = (TXCLF, "inspect", *words)
        return subprocess.run(words, check=False, capture_output=True, text=True, env=environment(), cwd=tmp_path)

    assert json.loads(inspected(run.run_folder, "--json").stdout) == inspect(run.run_folder)
    files = run.data.train
    assert files
    shown = inspected(files[0]).stdout
    assert "a run file for it:" in shown
    assert f"train: {files[0]}" in shown
    failed = inspected("nowhere")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "Pass raw data, prepared data, a run, a search or a model bundle" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_inspect_other_encoding_and_delimiter_are_found_and_suggested(tmp_path: Path) -> None:
    lines = [f"Grüße {number};{'ab'[number % 2]}\n" for number in range(50)]
    (tmp_path / "a.csv").write_bytes(f"Nachricht;Art\n{''.join(lines)}".encode("latin-1"))
    found = inspect(f"{tmp_path}/a.csv")
    assert (found["encoding"], found["delimiter"], found["bad_rows"]) == ("latin-1", '";"', 0)
    assert (found["text"], found["label"]) == (["Nachricht"], "Art")
    data = run_config.parse(found["suggested"]).data
    assert (data.encoding, data.delimiter, data.text, data.label) == ("latin-1", ";", ("Nachricht",), "Art")
