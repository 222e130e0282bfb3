"""Page of a run: its figures are those of the run's files."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.helpers.reports import ReportPage
from tests.helpers.runs import TINY, stopped_at
from txclf.artifacts import run_folder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import shards
from txclf.inference.bundle import read_metadata
from txclf.reports import report, run_report
from txclf.reports.error_analysis import QUICK


def test_gather_finished_run_has_the_figures_of_its_files(run: RunConfig) -> None:
    content = ReportPage(report.report([run.run_folder])).content
    (split,) = content["splits"]
    assert (split["id"], content["headline"]["where"]) == ("valid", "validation")
    summary = storage.read_json(storage.join(run.run_folder, "summary.json"))
    assert split["metrics"]["accuracy"] == pytest.approx(summary["best"]["valid_accuracy"])
    assert split["metrics"]["f1_macro"] == pytest.approx(summary["best"]["valid_f1_macro"])
    assert split["metrics"]["calibration_error"] == pytest.approx(summary["calibration"]["error_after"], abs=1e-6)
    assert split["rows"] == split["total_rows"] == summary["calibration"]["rows"]
    assert sum(count for _, _, count in split["confusion"]) == split["rows"]
    right = sum(count for i, j, count in split["confusion"] if i == j)
    assert right / split["rows"] == pytest.approx(split["metrics"]["accuracy"])
    assert [bar["title"] for bar in content["headline"]["bars"]] == [
        "this model",
        "n-gram linear model",
        "majority class",
    ]
    bins = split["reliability"]
    error = sum(rows * abs(confidence - accuracy) for confidence, accuracy, rows in bins) / split["rows"]
    assert error == pytest.approx(split["metrics"]["calibration_error"], abs=1e-6)
    assert len(split["mistakes"]) == split["rows"] - right
    worst = [one["label_probability"] for one in split["mistakes"]]
    assert worst == sorted(worst)
    log = content["curves"]["points"]
    assert {"train_loss", "valid_loss", "learning_rate", "tokens_per_second", "data_share"} <= set(log)
    assert all(0 <= share <= 1 for _, _, share in log["data_share"])
    assert all(pace > 0 for _, _, pace in log["tokens_per_second"])
    manifest = shards.load_manifest(summary["prepared"])
    assert sum(content["data"]["lengths"]["train"]) == manifest.splits["train"].rows
    counts = manifest.splits["train"].label_counts
    assert {one["label"]: one["rows"]["train"] for one in content["data"]["labels"]} == counts


def test_facts_vocabulary_of_a_pretrained_model_has_no_kind(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    pretrained = run.model_copy(update={"model": run.model.model_copy(update={"pretrained": "folder"})})
    found = [dict(run_report.facts(one))["vocabulary"] for one in (state, state._replace(run=pretrained))]
    tokens = found[1]
    assert tokens.endswith(" tokens")
    assert found[0] == f"{tokens}, {run.tokenizer.kind}"


@pytest.mark.parametrize("ngrams", ["true", "false"])
def test_gather_run_with_ngrams_says_that_its_curves_are_of_the_network_alone(
    tmp_path: Path, run: RunConfig, ngrams: str
) -> None:
    files = run.data.train
    assert files
    words = [f"data.train={files[0]}", f"storage={tmp_path}", f"model.ngrams={ngrams}"]
    stopped = run_config.load(None, [*TINY, *words, "name=stopped"])
    stopped_at(stopped, 7)
    assert ("of the network alone" in ReportPage(report.report([stopped.run_folder])).text) == (ngrams == "true")


def test_gather_unfinished_run_has_no_scores(tmp_path: Path, run: RunConfig) -> None:
    files = run.data.train
    assert files
    stopped = run_config.load(None, [*TINY, f"data.train={files[0]}", f"storage={tmp_path}", "name=stopped"])
    stopped_at(stopped, 7)
    content = ReportPage(report.report([stopped.run_folder])).content
    assert not content["finished"]
    assert content["splits"] == []
    assert content["data"]["splits"]
    assert any("not finished" in note for note in content["notes"])


def test_gather_prepared_data_gone_has_no_audit(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)._replace(prepared=None, manifest=None)
    page = run_report.gather(state, QUICK)
    assert (page.data, page.splits, page.num_labels) == (None, [], 0)
    assert page.notes == ["The prepared data are gone. This page has no scores by split and no audit of the data."]
    assert page.headline
    assert page.headline.where == "validation"


def test_curves_long_log_is_thinned(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_report, "CURVE_POINTS", 5)
    log: list[dict[str, float]] = [{"step": step, "epoch": step / 10, "train_loss": 1 / step} for step in range(1, 13)]
    curves = run_report.curves(run_folder.read_run(run.run_folder)._replace(log=log))
    assert [step for step, _, _ in curves.points["train_loss"]] == [1, 4, 7, 10]
    assert curves.best_step is None


def test_efficiency_figures_are_those_of_the_summary(run: RunConfig) -> None:
    summary = dict(storage.read_json(storage.join(run.run_folder, "summary.json")))
    figures = {figure.name: figure.value for figure in run_report.efficiency({**summary, "mfu": 0.25})}
    assert figures["MFU"] == "25.0%"
    assert figures["padding"] == f"{summary['padding_share']:.1%}"
    assert figures["in steps"] == f"{summary['seconds']['steps'] / summary['seconds']['total']:.1%}"
    assert "MFU" not in {figure.name for figure in run_report.efficiency({**summary, "mfu": None})}


def test_changed_only_settings_that_are_not_the_defaults(run: RunConfig) -> None:
    settings = {setting.key: (setting.value, setting.default) for setting in run_report.changed(run)}
    assert settings["train.batch_size"] == ("16", str(RunConfig().train.batch_size))
    assert settings["name"] == ("hostile", "run")
    assert "task" not in settings
    assert run_report.changed(RunConfig()) == []


def test_gather_commands_repeat_the_run(run: RunConfig) -> None:
    reproduce = run_report.gather(run_folder.read_run(run.run_folder), QUICK).reproduce
    train_again, evaluate_again = (shlex.split(command) for command in reproduce.commands)
    assert train_again == ["txclf", "train", f"{run.run_folder}/run.yaml", "name=hostile-again"]
    assert evaluate_again == ["txclf", "evaluate", run.run_folder]
    facts = dict(reproduce.facts)
    assert facts["seed"] == 1
    assert facts["SHA-256 of model.safetensors"] == read_metadata(f"{run.run_folder}/model").sha256["model.safetensors"]
    assert {"Python", "txclf", "torch"} <= set(dict(reproduce.versions))
