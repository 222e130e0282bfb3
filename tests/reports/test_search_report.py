"""Pages of searches and comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.reports import ReportPage, copied_run, search_folder
from tests.helpers.runs import TINY, go_on
from txclf.artifacts import run_folder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.reports import report, search_report
from txclf.reports.error_analysis import QUICK
from txclf.training.train import train


def test_compare_two_runs_lists_the_settings_that_differ(tmp_path: Path, run: RunConfig) -> None:
    files = run.data.train
    assert files
    overrides = [*TINY, f"data.train={files[0]}", f"storage={tmp_path}", "train.batch_size=32", "name=hostile"]
    other = run_config.load(None, overrides)
    train(other, prepare(other), go_on)
    out = report.report([run.run_folder, other.run_folder], str(tmp_path / "both.html"))
    content = ReportPage(out).content
    assert out == str(tmp_path / "both.html")
    differing = dict(content["differing"])
    assert set(differing) == {"train.batch_size", "data.test"}
    assert differing["train.batch_size"] == ["16", "32"]
    assert [compared["name"] for compared in content["runs"]] == ["runs/hostile", f"{tmp_path.name}/hostile"]
    for compared, config in zip(content["runs"], (run, other), strict=True):
        best = storage.read_json(storage.join(config.run_folder, "summary.json"))["best"]
        assert {key: compared["metrics"][key] for key in best} == best


def test_gather_unfinished_search_ranks_its_trials(tmp_path: Path) -> None:
    run = search_folder(tmp_path)
    content = ReportPage(report.report([run.run_folder])).content
    assert content["kind"] == "search"
    assert (content["metric"], content["lower"]) == ("valid_accuracy", False)
    assert content["log_keys"] == ["train.learning_rate"]
    numbers = [trial["number"] for trial in content["trials"]]
    assert sorted(numbers) == list(range(6))
    best = [trial["best"] for trial in content["trials"]]
    assert best == sorted(best, reverse=True)
    assert content["best"]["number"] == numbers[0]
    assert content["trials"][0]["history"][-1][1] == pytest.approx(best[0])
    assert dict(content["importance"])["train.learning_rate"] > 0.5
    assert sum(dict(content["importance"]).values()) == pytest.approx(1)


def test_gather_search_without_trials_is_empty(tmp_path: Path) -> None:
    run = search_folder(tmp_path, count=0)
    content = ReportPage(report.report([run.run_folder])).content
    assert (content["trials"], content["best"], content["importance"]) == ([], None, [])
    assert search_report.gather(run.run_folder).facts[0] == ("trials", "none yet")


def test_gather_finished_search_reports_its_summary(tmp_path: Path) -> None:
    folder = search_folder(tmp_path).run_folder
    summary = {
        "importance": {"model.pooling": 0.25, "train.learning_rate": 0.75},
        "epochs": 12.0,
        "epochs_to_the_end": 18.0,
        "seconds": 1234.5,
        "version": "0.1.0",
    }
    storage.write_json(storage.join(folder, "search.json"), summary)
    page = search_report.gather(folder)
    assert (page.finished, page.notes) == (True, [])
    assert page.importance == [("train.learning_rate", 0.75), ("model.pooling", 0.25)]
    assert dict(page.facts)["epochs"] == "12.0 of 18 (67%)"
    assert dict(page.facts)["time"] == "1,234 s"


def test_compare_same_folder_twice_has_no_differences(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    page = search_report.compare([state, state], QUICK)
    assert (page.differing, page.notes) == ([], [])
    assert [compared.name for compared in page.runs] == [state.folder] * 2


def test_compare_evaluated_run_adds_its_test_scores(run: RunConfig, tmp_path: Path) -> None:
    folder = copied_run(run, tmp_path)
    found = evaluate.evaluate(folder)
    page = search_report.compare([run_folder.read_run(run.run_folder), run_folder.read_run(folder)], QUICK)
    plain, evaluated = (compared.metrics for compared in page.runs)
    assert "test_accuracy" not in plain
    assert evaluated["test_accuracy"] == found["accuracy"]
    assert evaluated["test_accuracy of the n-gram baseline"] == found["baseline"]["accuracy"]
    # Metrics of all runs come before those of some.
    assert list(page.metrics).index("valid_accuracy") < list(page.metrics).index("test_accuracy")


def test_gather_trials_with_a_page_link_to_it(tmp_path: Path) -> None:
    folder = search_folder(tmp_path).run_folder
    page = storage.join(folder, "trials", "0002", "report.html")
    storage.write_bytes(page, b"")
    links = {found["href"] for tag, found in ReportPage(report.report([folder])).tags if tag == "a"}
    assert {href for href in links if href and not href.startswith("#")} == {"trials/0002/report.html"}
