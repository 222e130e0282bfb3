"""New texts against those of a run: no drift where rows are drawn alike, and each kind of drift where they are not."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import txclf
from tests.helpers import multilabel, pairs
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, trained
from txclf import Classifier
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError, DataError
from txclf.data.prepare import prepare
from txclf.evaluation import drift
from txclf.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("classify")
    data = write_csv(folder / "train.csv", make_rows(300))
    test = write_csv(folder / "test.csv", make_rows(200, seed=1))
    return trained(folder / "runs", data, f"data.test={test}", "name=mine", "train.epochs=3")[0]


def test_rows_that_are_drawn_alike_show_no_drift(run: RunConfig, tmp_path: Path) -> None:
    new = write_csv(tmp_path / "new.csv", [*make_rows(200, seed=2), *[("", "neg")] * 30])
    found = drift.drift(run.run_folder, [new])
    assert found["findings"] == []
    assert found["strangest"] == []
    assert (found["rows"], found["skipped"], found["compared"], found["known"]) == (200, 30, 200, ["test", "valid"])
    assert found["accuracy"]["expected"] == pytest.approx(found["accuracy"]["known"], abs=0.1)
    assert json.loads(Path(run.run_folder, drift.RESULT).read_text()) == found


def test_other_texts_differ_in_words_lengths_labels_and_vectors(run: RunConfig) -> None:
    texts = [f"{text} overdue invoice {text}" for text, _ in make_rows(300, seed=3)]
    found = txclf.drift(run.run_folder, pa.table({"text": texts}))
    kinds = [finding.split()[0] for finding in found["findings"]]
    assert [kind for kind in kinds if kind != "predicted"] == ["the", "lengths", "words"]
    assert {"overdue", "invoice"} <= set(found["words"]["typical"])
    assert found["lengths"]["new_median"] > 2 * found["lengths"]["known_median"]
    assert [sum(found["lengths"]["bins"][side]) for side in ("known", "new")] == pytest.approx([1.0, 1.0])
    assert len(found["strangest"]) == drift.MAX_STRANGEST
    scores = [row["score"] for row in found["strangest"]]
    assert scores == sorted(scores, reverse=True)
    assert all(row["text"] in texts for row in found["strangest"])
    shown = html.unescape(found._repr_html_())
    assert all(finding.split("(")[0] in shown for finding in found["findings"])


def test_one_class_alone_differs_in_predicted_labels(run: RunConfig, tmp_path: Path) -> None:
    rows = [(text, label) for text, label in make_rows(300, seed=3) if label == "neg"]
    found = drift.drift(run.run_folder, [write_csv(tmp_path / "new.csv", rows)])
    probabilities = Classifier.load(f"{run.run_folder}/model").probabilities([(text,) for text, _ in rows])
    share = found["labels"]["shares"]["neg"]
    assert share["new"] == pytest.approx((probabilities.argmax(axis=1) == 0).mean())
    assert found["labels"]["value"] == pytest.approx(abs(share["new"] - share["known"]))


def test_long_files_are_sampled(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MAX_ROWS", 100)
    new = write_csv(tmp_path / "new.csv", [*make_rows(300, seed=2), *[("another topic", "neg")] * 300])
    found = drift.drift(run.run_folder, [new])
    assert (found["rows"], found["compared"], found["known_rows"]) == (600, 100, 100)
    assert found["words"]["typical"] == ["topic", "another"]  # of some of the rows
    assert drift.drift(run.run_folder, [new]) == found


def test_multilabel_counts_the_labels_of_all_rows(tmp_path: Path) -> None:
    data = multilabel.write_lines(tmp_path / "rows.jsonl", multilabel.make(120, seed=0))
    run = multilabel.tagging(tmp_path / "runs", (data, data), "train.epochs=1")
    train(run, prepare(run), go_on)
    found = drift.drift(run.run_folder, [data])
    classifier = Classifier.load(f"{run.run_folder}/model")
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    has = classifier.probabilities(texts) >= classifier.thresholds
    for label, share in found["labels"]["shares"].items():
        assert share["new"] == pytest.approx(has[:, classifier.labels.index(label)].mean())
    assert "accuracy" not in found


def test_multilabel_rows_without_a_label_are_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = multilabel.write_lines(tmp_path / "rows.jsonl", multilabel.make(120, seed=0))
    run = multilabel.tagging(tmp_path / "runs", (data, data), "train.epochs=1")
    train(run, prepare(run), go_on)
    classifier = Classifier.load(f"{run.run_folder}/model")
    some = np.zeros((100, len(classifier.labels)), np.float32)
    some[:, 0] = 1.0
    sides = [drift._Side([], probabilities, np.empty(0, np.float32)) for probabilities in (some, np.zeros_like(some))]
    found = drift._labels(classifier, *sides)
    assert (found["value"], found["p_value"] < drift.LEVEL) == (1.0, True)
    assert found["change"] == f"`{classifier.labels[0]}` for 0% of the new rows, 100% of the known ones"


def test_runs_without_unseen_rows_and_files_without_texts_are_refused(run: RunConfig, tmp_path: Path) -> None:
    empty = write_csv(tmp_path / "empty.csv", [])
    with pytest.raises(DataError, match=r"no usable row\. Pass files"):
        drift.drift(run.run_folder, [empty])
    (tmp_path / "latin.csv").write_bytes("text\nRechnung fällig\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"no usable row\. The first is row 1: .*UTF-8.*encoding"):
        drift.drift(run.run_folder, [str(tmp_path / "latin.csv")])
    found = txclf.drift(run.run_folder, tmp_path / "latin.csv", encoding="latin-1")
    assert found["words"]["unseen"]["new"] == 1.0
    data = write_csv(tmp_path / "train.csv", make_rows(100))
    everything, _ = trained(tmp_path / "runs", data, "data.test_fraction=0", "train.train_on_valid=true")
    with pytest.raises(ConfigError, match="nothing to compare with"):
        drift.drift(everything.run_folder, [data])


def test_pairs_of_texts_are_refused(tmp_path: Path) -> None:
    lines = Path(pairs.write_pairs(tmp_path / "all.jsonl")).read_text().splitlines()[:80]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    run = pairs.pairs(tmp_path / "runs", str(tmp_path / "pairs.jsonl"), "train.epochs=1")
    train(run, prepare(run), go_on)
    with pytest.raises(ConfigError, match="seq2seq"):
        drift.drift(run.run_folder, [str(tmp_path / "pairs.jsonl")])
