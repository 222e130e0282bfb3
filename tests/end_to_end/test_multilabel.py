"""`task: multilabel` the whole way: files in, a model that gives labels, the same on any number of workers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.multilabel import TOPICS, make, tagging, write_lines
from tests.helpers.runs import go_on, lines, stopped_at
from txclf import Classifier
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.inference.bundle import METADATA
from txclf.prediction.predict import predict
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import check_fit, train


@pytest.fixture(scope="module")
def data(tag_data: tuple[str, str]) -> tuple[str, str]:
    return tag_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: tuple[str, str]) -> RunConfig:
    run = tagging(tmp_path_factory.mktemp("trained"), data)
    train(run, prepare(run), go_on)
    return run


# ------------------------------------------------------------------------------------------------------------- the data


def read(folder: str, split: str) -> list[tuple[str, list[str]]]:
    manifest = shards.load_manifest(folder)
    rows = shards.read_split(folder, manifest, split, ["text", "labels"]).to_pylist()
    return [(row["text"], [manifest.labels[label] for label in row["labels"]]) for row in rows]


@pytest.mark.parametrize("style", ["jsonl", "parquet", "csv", "tsv"])
def test_prepare_every_format_gives_the_same_rows(tmp_path: Path, style: str) -> None:
    rows = make(120, seed=5)
    path, words = tmp_path / f"rows.{style}", ["data.label_delimiter=;"]
    if style == "jsonl":
        write_lines(path, rows)
    elif style == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="," if style == "csv" else "\t")
            writer.writerows([["text", "tags"], *([row["text"], " ; ".join(row["tags"])] for row in rows)])
    folder = prepare(tagging(tmp_path, (str(path), str(path)), *words))
    manifest = shards.load_manifest(folder)
    assert manifest.labels == sorted(TOPICS)
    wanted = sorted((row["text"], sorted(row["tags"])) for row in rows)
    assert sorted(read(folder, "test")) == wanted
    assert sorted(read(folder, "train") + read(folder, "valid")) == wanted
    test = manifest.splits["test"]
    assert test.rows == 120
    assert test.unlabelled_rows == sum(not row["tags"] for row in rows) > 0
    assert test.label_cardinality == pytest.approx(np.mean([len(row["tags"]) for row in rows]))
    assert test.label_counts == {label: sum(label in row["tags"] for row in rows) for label in manifest.labels}


def test_prepare_reports_bad_rows_and_conflicting_label_sets(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [*make(40, 0), {"text": "soup", "tags": ["food", "sport"]}]
    rows += [{"text": "soup", "tags": ["sport", "food", "food"]}, {"text": "ball", "tags": ["sport"]}]
    rows += [{"text": "ball", "tags": []}, {"text": "drum", "tags": None}, {"text": "flute"}]
    train_file = write_lines(tmp_path / "train.jsonl", [*rows, {"text": "x", "tags": ["a", None]}])
    test_file = write_lines(tmp_path / "test.jsonl", [*make(5, 1), {"text": "y", "tags": ["food", "unheard"]}])
    run = tagging(tmp_path, (train_file, test_file))
    with pytest.raises(DataError, match=r"train\.jsonl: row 47: `tags` holds a label that is missing or blank"):
        prepare(run)
    found = shards.load_manifest(prepare(tagging(tmp_path, (train_file, test_file), "data.on_bad_row=skip")))
    assert found.conflicting_texts == 1  # `ball`; the two sets of `soup` are the same
    assert found.reject_reasons == {
        "`tags` holds a label that is missing or blank": 1,
        "label `unheard` is not among the training labels": 1,
    }
    assert found.splits["test"].rejected == 1


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([[], None, ""], "no row has a label in column `tags`"),
        ([["a"], ["a"], "a"], "every row has the label `a`"),
        ([["0.5"], [0.25], [1.5, 2.5]], "holds numbers with fractions"),
        ([["a b"], ["c d"], ["e f"], ["g"]], "4 different labels in 4 rows"),
    ],
)
def test_prepare_unlearnable_labels_raises(tmp_path: Path, tags: list[Any], message: str) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", [{"text": f"word {number}", "tags": one} for number, one in enumerate(tags)]
    )
    with pytest.raises(DataError, match=message):
        prepare(tagging(tmp_path, (path, path)))


def test_prepare_accepts_one_label_that_some_rows_lack(tmp_path: Path) -> None:
    rows = [{"text": f"{'yes' if i % 3 else 'no'} {i}", "tags": ["a"] if i % 3 else []} for i in range(120)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    run = tagging(tmp_path, (path, path))
    train(run, prepare(run), go_on)
    found = evaluate.evaluate(run.run_folder)
    assert found["f1_macro"] > 0.95
    assert [one.labels for one in Classifier.load(f"{run.run_folder}/model")(["yes 1", "no 1"])] == [["a"], []]


# ----------------------------------------------------------------------------------------------------------- the model


def test_evaluate_scores_model_and_baseline(trained: RunConfig) -> None:
    found = evaluate.evaluate(trained.run_folder)
    assert found["f1_macro"] > 0.9
    assert found["f1_micro"] > 0.9
    assert found["map"] > 0.9
    assert found["lrap"] > 0.9
    assert found["subset_accuracy"] > 0.8
    assert found["hamming_loss"] < 0.1
    assert found["baseline"]["f1_micro"] > 0.8
    assert found["majority"]["f1_micro"] < found["baseline"]["f1_micro"]
    summary = storage.read_json(f"{trained.run_folder}/summary.json")
    assert {name: one["threshold"] for name, one in found["per_class"].items()} == pytest.approx(summary["thresholds"])
    again = evaluate.evaluate(trained.run_folder, list(trained.data.test or ()), with_baseline=False)
    same = ("f1_macro", "map", "rows", "per_class")
    assert {name: again[name] for name in same} == {name: found[name] for name in same}
    # The checkpoint with the best `train.monitor`, as the log has it.
    best = max(line["valid_map"] for line in lines(trained) if "valid_map" in line)
    assert summary["best"]["valid_map"] == best


def test_classifier_predicts_labels_above_their_thresholds(trained: RunConfig) -> None:
    classifier = Classifier.load(f"{trained.run_folder}/model")
    both, none = classifier(["the drum and a ball", "of the and it"])
    assert sorted(both.labels) == ["music", "sport"]
    assert none.labels == []
    assert both.label == both.labels[0] == max(both.probabilities, key=lambda label: both.probabilities[label])
    assert both.probability == both.probabilities[both.label]
    assert sum(both.probabilities.values()) > 1.5
    limits = dict(zip(classifier.labels, classifier.thresholds, strict=True))
    for one in (both, none):
        assert set(one.labels) == {label for label, p in one.probabilities.items() if p >= limits[label]}
    assert classifier(["drum"])[0].labels == classifier(["drum", "the " * 9])[0].labels
    card = Path(trained.run_folder, "model/README.md").read_text()
    assert "(minimum probability of a predicted label): chosen on the validation rows, from 0." in card


def test_classifier_changed_thresholds_change_the_labels(trained: RunConfig, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in Path(trained.run_folder, "model").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    description = json.loads((copy / METADATA).read_text())
    description["thresholds"] = dict.fromkeys(description["labels"], 0.0)
    (copy / METADATA).write_text(json.dumps(description))
    (every,) = Classifier.load(str(copy))(["drum"])
    assert every.labels == sorted(TOPICS, key=lambda label: -every.probabilities[label])
    del description["thresholds"], description["label_delimiter"]
    (copy / METADATA).write_text(json.dumps(description))
    assert Classifier.load(str(copy)).thresholds.tolist() == [0.5] * 4


def test_predict_adds_labels_to_files(trained: RunConfig, tmp_path: Path) -> None:
    model = f"{trained.run_folder}/model"
    source = write_lines(tmp_path / "in.jsonl", [{"text": "soup and drum"}, {"text": ""}, {"text": "of it"}])
    done = predict(model, [source], out=str(tmp_path / "out.jsonl"), probabilities=True)
    names = [f"probability_{label}" for label in sorted(TOPICS)]
    assert (done.rows, done.bad, done.columns) == (3, 1, ["labels", *names])
    first, bad, none = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert sorted(first["labels"]) == ["food", "music"]
    assert first["probability_food"] > 0.5
    assert (bad["labels"], none["labels"]) == (None, [])
    predict(model, [source], out=str(tmp_path / "out.parquet"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("labels").type == pa.list_(pa.string())
    assert table["labels"].to_pylist() == [first["labels"], None, []]
    with pytest.raises(
        ConfigError, match="`rare, odd`: the label contains the delimiter `,`, so a csv file cannot hold it"
    ):
        predict(model, [source], out=str(tmp_path / "out.csv"))


def test_train_stopped_and_resumed_gives_the_same_losses(tmp_path: Path, data: tuple[str, str]) -> None:
    words = ["train.checkpoint_every=7", "train.epochs=2", "train.adversarial=0.5", "train.class_weights=balanced"]
    run, whole = tagging(tmp_path, data, *words), tagging(tmp_path, data, "name=whole", *words)
    folder = prepare(run)
    train(whole, folder, go_on)

    def stop(progress: Progress) -> bool:
        return progress.step >= 20  # at the latest after the validation of the first epoch

    with pytest.raises(Interrupted):
        train(run, folder, stop)
    train(run, folder, go_on)
    assert losses(run) == losses(whole)


def losses(run: RunConfig) -> list[tuple[Any, ...]]:
    names = ("train_loss", "valid_loss", "valid_map", "valid_f1_macro", "valid_f1_micro", "valid_subset_accuracy")
    return [(line["step"], *(line.get(name) for name in names)) for line in lines(run)]


def test_train_resumed_in_a_shuffle_window_takes_the_same_steps(tmp_path: Path, data: tuple[str, str]) -> None:
    words = ["data.shuffle_window=500", "train.epochs=2"]
    whole, halted = (tagging(tmp_path, data, f"name={name}", *words) for name in ("whole", "halted"))
    train(whole, prepare(whole), go_on)
    stopped_at(halted, 7)
    train(halted, prepare(halted), go_on)
    assert losses(halted) == losses(whole)


def test_averaged_checkpoints_get_their_own_thresholds(tmp_path: Path, data: tuple[str, str]) -> None:
    run = tagging(tmp_path, data, "train.average_checkpoints=3", "train.calibrate=false", "train.monitor=valid_loss")
    summary = train(run, prepare(run), go_on)
    assert summary.thresholds
    assert summary.calibration is None
    assert len(summary.averaged) in (0, 3)
    manifest = shards.load_manifest(summary.prepared)
    valid = [label for _, row in read(summary.prepared, "valid") for label in row]
    rare = [label for label in manifest.labels if valid.count(label) < 5]
    assert len({summary.thresholds[label] for label in rare}) <= 1


def test_train_on_valid_chooses_no_thresholds(tmp_path: Path, data: tuple[str, str]) -> None:
    run = tagging(tmp_path, data, "train.train_on_valid=true", "train.epochs=1")
    summary = train(run, prepare(run), go_on)
    assert summary.thresholds is None
    classifier = Classifier.load(f"{run.run_folder}/model")
    assert classifier.thresholds.tolist() == [0.5] * 4
    assert "(minimum probability of a predicted label): 0.5" in Path(run.run_folder, "model/README.md").read_text()


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("local_ray")
def test_train_two_workers_take_the_steps_of_one(tmp_path: Path, data: tuple[str, str]) -> None:
    found = {}
    for workers in (0, 2):
        words = ["train.epochs=1", "train.learning_rate=1e-3", "model.dropout=0", "train.class_weights=balanced"]
        words += [f"compute.workers={workers}", "compute.cpus_per_worker=0.5"]
        run = tagging(tmp_path, data, f"name=on-{workers}", *words)
        train(run, prepare(run), go_on)
        found[workers] = losses(run)
    for (step, *one), (same, *two) in zip(found[0], found[2], strict=True):
        assert step == same
        assert [value or 0.0 for value in one[:2]] == pytest.approx([value or 0.0 for value in two[:2]], rel=2e-3)
        # Two rows whose scores are all but equal may change places.
        assert [value or 0.0 for value in one[2:]] == pytest.approx([value or 0.0 for value in two[2:]], abs=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.monitor=valid_accuracy"], "`train.monitor: valid_accuracy` is not a metric of `task: multilabel`"),
        (["tune.metric=valid_exact_match"], "`tune.metric: valid_exact_match` is not a metric of `task: multilabel`"),
        (["train.sampling=balanced"], "`train.sampling: balanced` is not supported with `task: multilabel`"),
        (["task=classify"], "`train.monitor: valid_map` is not a metric of `task: classify`"),
        (["data.label_delimiter="], "`data.label_delimiter`: "),
    ],
)
def test_load_unsupported_settings_raises(
    tmp_path: Path, data: tuple[str, str], words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tagging(tmp_path, data, *words)


def test_train_weight_of_an_unknown_label_raises(tmp_path: Path, data: tuple[str, str]) -> None:
    run = tagging(tmp_path, data, "train.class_weights={fod: 2}")
    with pytest.raises(ConfigError, match="`fod` is not a label; the labels are: `food`, `music`"):
        check_fit(run, shards.load_manifest(prepare(run)))


def test_command_line_prints_scores_and_thresholds(trained: RunConfig, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "txclf", "evaluate", trained.run_folder, "--no-baseline"]
    output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    for word in ("macro F1", "micro F1", "LRAP", "mean average precision", "threshold", "rare, odd"):
        assert word in output
    bad = tmp_path / "bad.jsonl"
    write_lines(bad, [{"text": "soup", "tags": [None]}])
    failed = subprocess.run([*words, "--data", str(bad)], check=False, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "row 1: `tags` holds a label that is missing or blank" in failed.stderr
    assert "Traceback" not in failed.stderr
