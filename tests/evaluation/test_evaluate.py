"""Evaluation of finished runs of each task: the content of `metrics.json`, and the runs that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import multilabel, pairs
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, trained
from txclf import Classifier, Seq2Seq
from txclf.config.run_config import RunConfig
from txclf.config.tasks import TASKS
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.training.train import train


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("classify")
    data = write_csv(folder / "train.csv", make_rows(120))
    test = write_csv(folder / "test.csv", [*make_rows(40, seed=1), ("no label", "")])
    run, _ = trained(folder / "runs", data, f"data.test={test}", "name=mine", "data.on_bad_row=skip")
    return run


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("tags")
    data = multilabel.write_lines(folder / "rows.jsonl", multilabel.make(120, seed=0))
    run = multilabel.tagging(folder / "runs", (data, data), "train.epochs=2")
    train(run, prepare(run), go_on)
    return run


@pytest.fixture(scope="module")
def reversal(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("pairs")
    lines = Path(pairs.write_pairs(folder / "all.jsonl")).read_text().splitlines()[:80]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    run = pairs.pairs(folder / "runs", str(folder / "pairs.jsonl"), "train.epochs=1")
    train(run, prepare(run), go_on)
    return run


def test_evaluators_every_task_has_one() -> None:
    assert set(evaluate.EVALUATORS) == set(TASKS)


def test_evaluate_classify_test_split_scores_every_row(classify: RunConfig) -> None:
    found = evaluate.evaluate(classify.run_folder)
    rows = make_rows(40, seed=1)
    predictions = Classifier.load(f"{classify.run_folder}/model")([text for text, _ in rows])
    right = [prediction.label == label for prediction, (_, label) in zip(predictions, rows, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert (found["data"], found["rows"], found["skipped"], found["labels"]) == ("test", 40, 1, ["neg", "pos"])
    assert json.loads(Path(classify.run_folder, evaluate.METRICS).read_text()) == found
    summary = json.loads(Path(classify.run_folder, "summary.json").read_text())
    assert found["temperature"] == pytest.approx(summary["calibration"]["temperature"])


def test_evaluate_classify_measures_the_coverage_of_prediction_sets(classify: RunConfig) -> None:
    found = evaluate.evaluate(classify.run_folder, with_baseline=False)["prediction_sets"]
    rows, classifier = make_rows(40, seed=1), Classifier.load(f"{classify.run_folder}/model")
    for coverage in (0.9, 0.95):
        sets = classifier.prediction_sets([text for text, _ in rows], coverage)
        covered = np.mean([label in labels for labels, (_, label) in zip(sets, rows, strict=True)])
        expected = {"coverage": pytest.approx(covered), "mean_size": pytest.approx(np.mean(list(map(len, sets))))}
        assert found[str(coverage)] == expected


def test_evaluate_classify_without_quantiles_has_no_prediction_sets(classify: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(classify.run_folder, folder)
    metadata = storage.read_json(folder / "model/model.json")
    del metadata["conformal"]  # as an earlier version saved it
    storage.write_json(folder / "model/model.json", metadata)
    assert evaluate.evaluate(str(folder), with_baseline=False)["prediction_sets"] is None


def test_evaluate_classify_baselines_are_scored_on_the_same_rows(classify: RunConfig) -> None:
    found = evaluate.evaluate(classify.run_folder)
    assert found["baseline"]["model"].startswith("n-gram linear model: ")
    train = shards.load_manifest(storage.read_json(f"{classify.run_folder}/summary.json")["prepared"]).splits["train"]
    assert found["baseline"]["train_rows"] == train.rows
    majority = max(train.label_counts, key=lambda label: train.label_counts[label])
    share = np.mean([label == majority for _, label in make_rows(40, seed=1)])
    assert found["majority"]["accuracy"] == pytest.approx(share)
    for name, (difference, low, high) in found["baseline"]["difference"].items():
        assert difference == pytest.approx(found[name] - found["baseline"][name])
        assert low <= difference <= high
    for label, scores in found["baseline"]["per_class"].items():
        assert scores["difference"][0] == pytest.approx(found["per_class"][label]["f1"] - scores["f1"])
    without = evaluate.evaluate(classify.run_folder, with_baseline=False)
    assert not {"baseline", "majority"} & set(without)
    assert without["accuracy"] == found["accuracy"]


def test_evaluate_classify_other_files_replace_the_test_split(classify: RunConfig, tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", [*make_rows(25, seed=2), ("a new label", "neutral")])
    found = evaluate.evaluate(classify.run_folder, [other], with_baseline=False)
    assert (found["data"], found["rows"], found["skipped"]) == ([other], 25, 1)


def test_evaluate_multilabel_other_files_equal_the_test_split(tags: RunConfig) -> None:
    found = evaluate.evaluate(tags.run_folder)
    assert (found["data"], found["rows"], found["labels"]) == ("test", 120, sorted(multilabel.TOPICS))
    assert found["majority"].keys() == {"f1_macro", "f1_micro", "subset_accuracy"}
    assert found["baseline"].keys() == {
        "model",
        "train_rows",
        "of_train_rows",
        "seconds",
        "f1_macro_p_value",
        "p_value",
        "difference",
        "per_class",
        *found["majority"],
    }
    assert found["baseline"]["difference"].keys() == {"f1_micro", "f1_macro"}
    again = evaluate.evaluate(tags.run_folder, list(tags.data.test or ()), with_baseline=False)
    assert {key: again[key] for key in ("f1_macro", "map", "per_class")} == {
        key: found[key] for key in ("f1_macro", "map", "per_class")
    }


def test_evaluate_seq2seq_scores_generated_texts(reversal: RunConfig) -> None:
    found = evaluate.evaluate(reversal.run_folder)
    pairs_ = [json.loads(line) for line in Path((reversal.data.test or [""])[0]).read_text().splitlines()]
    outputs = Seq2Seq.load(f"{reversal.run_folder}/model")([pair["source"] for pair in pairs_])
    right = [output.split() == pair["target"].split() for output, pair in zip(outputs, pairs_, strict=True)]
    assert found["exact_match"] == pytest.approx(np.mean(right))
    assert (found["data"], found["rows"], found["beams"]) == ("test", 80, 2)
    assert {"bleu", "chrf", "loss", "token_accuracy", "perplexity"} <= set(found)
    assert not {"baseline", "majority"} & set(found)


def test_evaluate_unfinished_run_is_refused(classify: RunConfig, tmp_path: Path) -> None:
    folder = str(tmp_path / "copy")
    shutil.copytree(classify.run_folder, folder)
    Path(folder, "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"not a finished run, because it has no summary\.json\. Train it"):
        evaluate.evaluate(folder)


def test_evaluate_copied_run_reads_its_copied_data(classify: RunConfig, tmp_path: Path) -> None:
    copied = shutil.copytree(classify.storage, tmp_path / "copied")
    recorded = Path(copied, classify.name, "prepared.json")
    there = json.loads(recorded.read_text())["folder"]
    recorded.write_text(recorded.read_text().replace(there, "/gone"))
    run, prepared = evaluate.finished(str(copied / classify.name))
    assert (run.name, Path(prepared).parent) == (classify.name, copied / "prepared")
    assert evaluate.has_test_split(str(copied / classify.name)) == evaluate.has_test_split(classify.run_folder)
    shutil.rmtree(copied / "prepared")
    assert not evaluate.has_test_split(str(copied / classify.name))
    with pytest.raises(
        DataError, match=r"its prepared data are gone\. Train again, or copy them together with the run"
    ):
        evaluate.evaluate(str(copied / classify.name))


def test_evaluate_run_without_test_split_needs_files(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", make_rows(60))
    run, _ = trained(tmp_path / "runs", data, "train.epochs=1")
    with pytest.raises(ConfigError, match=r"the run has no test split\. Pass labelled files with --data FILE"):
        evaluate.evaluate(run.run_folder)
    assert evaluate.evaluate(run.run_folder, [data])["rows"] == 60


def test_evaluate_other_files_count_trained_rows_and_keep_the_test_scores(classify: RunConfig, tmp_path: Path) -> None:
    tested = evaluate.evaluate(classify.run_folder, with_baseline=False)
    prepared = storage.read_json(f"{classify.run_folder}/summary.json")["prepared"]
    manifest = shards.load_manifest(prepared)
    assert tested["trained_rows"] == manifest.splits["test"].duplicates_of_train
    seen = shards.read_split(prepared, manifest, "train", ["text", "label"]).slice(0, 7).to_pylist()
    rows = [(row["text"], manifest.labels[row["label"]]) for row in seen]
    other = write_csv(tmp_path / "other.csv", [*rows, ("a text of its own", "pos")])
    found = evaluate.evaluate(classify.run_folder, [other], with_baseline=False)
    assert (found["rows"], found["trained_rows"]) == (8, 7)
    folder = Path(classify.run_folder)
    assert json.loads((folder / evaluate.METRICS).read_text()) == tested
    assert json.loads((folder / evaluate.OTHER_METRICS).read_text()) == found


def test_evaluate_file_without_rows_raises(classify: RunConfig, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "none.csv", [])
    with pytest.raises(DataError, match=r"none\.csv`: no usable row\. Pass files with labelled rows\.$"):
        evaluate.evaluate(classify.run_folder, [path], with_baseline=False)


def test_evaluate_trained_rows_include_validation_rows_that_were_trained_on(tmp_path: Path) -> None:
    rows = make_rows(100)
    files = [write_csv(tmp_path / f"{name}.csv", part) for name, part in (("train", rows[:60]), ("valid", rows[60:80]))]
    test = write_csv(tmp_path / "test.csv", [*rows[:3], *rows[60:65], *rows[80:]])
    words = [f"data.valid={files[1]}", f"data.test={test}", "train.epochs=1", "train.train_on_valid=true"]
    run, _ = trained(tmp_path / "runs", files[0], *words)
    texts = {text for text, _ in rows[:80]}
    expected = sum(text in texts for text, _ in [*rows[:3], *rows[60:65], *rows[80:]])
    assert evaluate.evaluate(run.run_folder, with_baseline=False)["trained_rows"] == expected >= 8


def test_evaluate_trained_rows_include_texts_that_the_encoder_has_learned_from(tmp_path: Path) -> None:
    rows = make_rows(100)
    data, test = (
        write_csv(tmp_path / f"{name}.csv", part) for name, part in (("train", rows[:80]), ("test", rows[80:]))
    )
    more = write_csv(tmp_path / "more.csv", [(text,) for text, _ in rows[80:]], header=["text"])
    words = [f"data.test={test}", f"data.unlabelled={more}", "train.epochs=1", "train.pretrain_epochs=1"]
    run, _ = trained(tmp_path / "runs", data, *words)
    assert evaluate.evaluate(run.run_folder, with_baseline=False)["trained_rows"] == 20


def test_scores_in_a_notebook_show_baselines_and_the_worst_classes_first() -> None:
    classes = {
        name: {"precision": 0.5, "recall": 0.5, "f1": f1, "support": 7} for name, f1 in (("a", 0.9), ("<b>", 0.1))
    }
    shown = evaluate.Scores(rows=1000, accuracy=0.75, baseline={"accuracy": 0.5}, per_class=classes)._repr_html_()
    assert "<b>Scores on 1,000 rows</b>" in shown
    assert "<td>accuracy</td><td>0.75</td><td>0.5</td>" in shown
    assert shown.index("&lt;b&gt;") < shown.index("<td>a</td>")
    assert "baseline" not in evaluate.Scores(rows=1, accuracy=1.0)._repr_html_()


def test_evaluate_other_files_reads_them_as_the_run_does(tmp_path: Path) -> None:
    rows = [(f"{text} é", label) for text, label in make_rows(80)]
    path = tmp_path / "messy.csv"
    path.write_text("text;label\n" + "".join(f"{text};{label}\n" for text, label in rows), encoding="latin-1")
    run, _ = trained(tmp_path, str(path), "data.encoding=latin-1", "data.delimiter=;")
    found = evaluate.evaluate(run.run_folder, [str(path)], with_baseline=False)
    assert found["rows"] == 80
    assert 0 < found["trained_rows"] <= 80
