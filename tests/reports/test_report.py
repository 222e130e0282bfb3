"""Pages of runs, searches and comparisons: their numbers, and text of the data that would like to be markup."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from tests.helpers.reports import HOSTILE, LABELS, hostile_run, search_folder
from tests.helpers.runs import TINY, go_on, stopped_at
from txclf import Classifier
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.reports import error_analysis, html, report, search_report
from txclf.reports.content import ALL_CLASSES
from txclf.reports.error_analysis import Budget
from txclf.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return hostile_run(tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """The tags of a page, their attributes, and the text of the scripts."""

    def __init__(self, path: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(Path(path).read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def content(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0]))


def test_text_of_the_data_stays_text(run: RunConfig) -> None:
    page = Page(report.report([run.run_folder]))
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [one.get("type") for one in scripts] == ["application/json", "text/plain", None]
    assert not any(tag in ("img", "b", "iframe", "object") for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(attributes.get("src") for _, attributes in page.tags)
    assert all(href.startswith(("#", "data:")) for _, found in page.tags if (href := found.get("href")) is not None)
    assert "<" not in page.scripts[0]
    # The texts are there, as they were.
    found = [one["text"] for one in page.content["splits"][0]["mistakes"]]
    assert found
    assert any(HOSTILE[0] in text for text in found)
    assert any(HOSTILE[1] in text for text in found)
    assert all(text in page.text for text in found)
    assert page.content["splits"][0]["labels"] == sorted(LABELS)
    assert all(label in page.text for label in LABELS)


def test_nothing_runs_but_what_the_page_brings(run: RunConfig) -> None:
    page = Page(report.report([run.run_folder]))
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    script = policy.split("script-src")[1].split(";")[0].split()
    assert len(script) == 2
    assert all(source.startswith("'sha256-") for source in script)
    assert script[0] == f"'{html._hash(page.scripts[2])}'"


@pytest.mark.parametrize("value", [*HOSTILE, *LABELS, {"<": [">", "&"]}, float("nan"), [1.5, None, True]])
def test_json_within_a_script_tag(value: Any) -> None:
    text = html.embedded({"value": value})
    assert not set("<>&") & set(text)
    found = json.loads(text)["value"]
    assert found == value or (isinstance(value, float) and found is None)


def test_numbers_are_those_of_the_evaluation(run: RunConfig) -> None:
    content = Page(report.report([run.run_folder])).content
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
        "n-gram logistic regression",
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


def test_mistakes_name_their_rows(run: RunConfig) -> None:
    """What the page says of a row is what the bundle says of its text."""
    (split,) = Page(report.report([run.run_folder])).content["splits"]
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    lines = Path(str(run.data.train[0] if run.data.train else "")).read_text()
    for one in split["mistakes"][:5]:
        (said,) = classifier([one["text"]])
        assert said.label == one["predicted"] == one["top"][0][0]
        assert said.probabilities[one["label"]] == pytest.approx(one["label_probability"], abs=1e-5)
        assert one["file"].endswith("<b>train.csv")
        assert str(one["text"].split()[-1]) in lines


def test_the_test_rows_are_shown_once_they_were_evaluated(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    assert [one["id"] for one in Page(report.report([run.run_folder])).content["splits"]] == ["valid"]
    found = evaluate.evaluate(run.run_folder)
    content = Page(report.report([run.run_folder])).content
    assert [one["id"] for one in content["splits"]] == ["test", "valid"]
    assert content["headline"]["where"] == "test"
    assert content["headline"]["value"] == pytest.approx(found["accuracy"])
    assert content["headline"]["bars"][1]["value"] == found["baseline"]["accuracy"]
    assert content["splits"][0]["per_class"] == found["per_class"]


def test_a_budget_bounds_what_is_scored(run: RunConfig) -> None:
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    manifest = shards.load_manifest(prepared)
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    few = error_analysis.score(classifier, prepared, manifest, "train", Budget(7, 60.0, 50))
    every = error_analysis.score(classifier, prepared, manifest, "train", Budget(10**6, 60.0, 50))
    assert (len(few.labels), few.total_rows) == (7, manifest.splits["train"].rows)
    assert len(every.labels) == every.total_rows == len(every.sources)
    np.testing.assert_allclose(few.logits, every.logits[:7], atol=1e-5)
    found = error_analysis.baseline_scores(few, prepared, manifest, lowercase=True, budget=Budget(7, 60.0, 50))
    assert found["baseline"]["train_rows"] == 50


@pytest.mark.parametrize("rows", [2, 30, 5000])
def test_curves_are_scikit_learn_s(rows: int) -> None:
    draw = np.random.default_rng(rows)
    truth = draw.random(rows) < 0.3
    truth[:2] = [True, False]
    scores = np.round(truth * 0.3 + draw.random(rows), 2).astype(np.float32)
    found = asdict(error_analysis.class_curves(scores, truth, ALL_CLASSES))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found["ap"] == pytest.approx(metrics.average_precision_score(truth, scores))
    assert len(found["fpr"]) <= error_analysis.CURVE_POINTS + 2
    assert (found["fpr"][0], found["tpr"][0], found["fpr"][-1], found["tpr"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(found["tpr"], found["fpr"]) == pytest.approx(found["auc"], abs=0.02)


def test_an_unfinished_run_shows_what_there_is(tmp_path: Path, run: RunConfig) -> None:
    files = run.data.train
    assert files
    stopped = run_config.load(None, [*TINY, f"data.train={files[0]}", f"storage={tmp_path}", "name=stopped"])
    stopped_at(stopped, 7)
    content = Page(report.report([stopped.run_folder])).content
    assert not content["finished"]
    assert content["splits"] == []
    assert content["data"]["splits"]
    assert any("not finished" in note for note in content["notes"])


def test_runs_are_compared(tmp_path: Path, run: RunConfig) -> None:
    files = run.data.train
    assert files
    words = [*TINY, f"data.train={files[0]}", f"storage={tmp_path}", "train.batch_size=32", "name=hostile"]
    other = run_config.load(None, words)
    train(other, prepare(other), go_on)
    out = report.report([run.run_folder, other.run_folder], str(tmp_path / "both.html"))
    content = Page(out).content
    assert out == str(tmp_path / "both.html")
    differing = dict(content["differing"])
    assert set(differing) == {"train.batch_size", "data.test"}
    assert differing["train.batch_size"] == ["16", "32"]
    assert [one["name"] for one in content["runs"]] == ["runs/hostile", f"{tmp_path.name}/hostile"]
    for one, which in zip(content["runs"], (run, other), strict=True):
        best = storage.read_json(storage.join(which.run_folder, "summary.json"))["best"]
        assert {key: one["metrics"][key] for key in best} == best


def test_a_multilabel_run_has_a_page_and_a_card(tmp_path: Path) -> None:
    table = {
        "text": [f"word{number % 3} {number} {HOSTILE[1]}" for number in range(240)],
        "label": [["a"], ["a", "b"], []] * 80,
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    data = [f"data.train={tmp_path}/rows.parquet", f"data.test={tmp_path}/rows.parquet"]
    run = run_config.load(None, [*TINY, *data, "task=multilabel", f"storage={tmp_path}/runs", "name=several"])
    train(run, prepare(run), go_on)
    content = Page(report.report([run.run_folder])).content
    assert [split["id"] for split in content["splits"]] == ["valid"]
    assert content["headline"]["where"] == "validation"
    found = evaluate.evaluate(run.run_folder)
    content = Page(report.report([run.run_folder])).content
    split = content["splits"][0]
    assert split["id"] == "test"
    for name, scores in found["per_class"].items():
        assert split["per_class"][name] == pytest.approx(scores)
    assert split["metrics"]["lrap"] == pytest.approx(found["lrap"])
    assert [one["class_id"] for one in split["curves"]] == [-1, 0, 1]
    assert sum(count for _, _, count in split["reliability"]) == 2 * split["rows"] == 480
    classifier = Classifier.load(f"{run.run_folder}/model")
    for one in split["mistakes"]:
        (probabilities,) = classifier.probabilities([(one["text"],)])
        (given,) = classifier.predicted_labels(probabilities[None])
        label = one["label"] if one["label"] != error_analysis.NOT_PREDICTED else one["predicted"]
        assert (label in given) != (label in one["true_labels"])
        assert one["label_probability"] == pytest.approx(probabilities[classifier.labels.index(label)], abs=1e-5)
    assert content["headline"]["value"] == found["f1_macro"]
    assert content["headline"]["bars"][1]["value"] == found["baseline"]["f1_macro"]
    assert "any number of labels per text" in Path(run.run_folder, "model/card.md").read_text()


def test_a_search_shows_its_trials(tmp_path: Path) -> None:
    run = search_folder(tmp_path)
    content = Page(report.report([run.run_folder])).content
    assert content["kind"] == "search"
    assert (content["metric"], content["lower"]) == ("valid_accuracy", False)
    assert content["log_keys"] == ["train.learning_rate"]
    numbers = [one["number"] for one in content["trials"]]
    assert sorted(numbers) == list(range(6))
    best = [one["best"] for one in content["trials"]]
    assert best == sorted(best, reverse=True)
    assert content["best"]["number"] == numbers[0]
    assert content["trials"][0]["history"][-1][1] == pytest.approx(best[0])
    assert dict(content["importance"])["train.learning_rate"] > 0.5
    assert sum(dict(content["importance"]).values()) == pytest.approx(1)


def test_a_search_without_a_trial_yet(tmp_path: Path) -> None:
    run = search_folder(tmp_path, count=0)
    content = Page(report.report([run.run_folder])).content
    assert (content["trials"], content["best"], content["importance"]) == ([], None, [])
    assert search_report.gather(run.run_folder).facts[0] == ("trials", "none yet")


def test_what_is_no_run_is_refused(tmp_path: Path, run: RunConfig) -> None:
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    for path, message in (
        (str(tmp_path), "neither a run nor a search"),
        (storage.join(run.run_folder, "model"), "a model bundle"),
        (prepared, "prepared data"),
        (str(tmp_path / "nothing"), "neither a run nor a search"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"`{path}`: {message}")):
            report.report([path])
    search = search_folder(tmp_path)
    with pytest.raises(ConfigError, match="a search cannot be compared"):
        report.report([run.run_folder, search.run_folder])


def test_a_report_that_fails_is_a_warning(tmp_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    assert report.after(run.run_folder) == storage.join(run.run_folder, "report.html")
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "run.yaml").write_text("name: [")
    (folder / "prepared.json").write_text("{}")
    assert report.after(str(folder)) is None
    assert "no report was written" in caplog.text
