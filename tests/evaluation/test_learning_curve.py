"""Learning curves: nested parts with every label, runs that follow their own number of rows, a forecast that fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import txclf
from tests.helpers import multilabel, pairs
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, tiny, trained
from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError, DataError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.evaluation import learning_curve
from txclf.training.train import check_folder, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("classify")
    data = write_csv(folder / "train.csv", [*make_rows(300), *((f"rare {n}", "rare") for n in range(8))])
    return trained(folder / "runs", data, "name=mine", "train.epochs=2", "seed=3")[0]


def test_curve_trains_nested_parts_and_forecasts(run: RunConfig) -> None:
    found = txclf.curve(run.run_folder, points=2)
    state = run_folder.read_run(run.run_folder)
    assert state.manifest is not None
    rows = state.manifest.splits["train"].rows
    sizes = [rows >> 2, rows >> 1]
    assert [point["rows"] for point in found["points"]] == [*sizes, rows]
    parts = [pq.read_table(f"{run.run_folder}/curve/data/{size}.parquet") for size in sizes]
    smaller, larger = (set(part["text"].to_pylist()) for part in parts)
    assert smaller < larger
    for size, part in zip(sizes, parts, strict=True):
        assert len(part) == size
        assert set(part["label"].to_pylist()) == {"neg", "pos", "rare"}
        trained_on = run_folder.read_run(f"{run.run_folder}/curve/{size}")
        assert trained_on.manifest is not None
        assert trained_on.manifest.splits["train"].rows == size
        assert trained_on.manifest.splits["valid"].rows == found["valid_rows"]
        assert not trained_on.has_test
    # The run itself has the scores of its own validation, which the networks of both have.
    assert found["points"][-1]["accuracy"] == pytest.approx(state.best["valid_accuracy"], abs=0.05)  # type: ignore[index]
    assert json.loads(Path(run.run_folder, "curve/curve.json").read_text()) == found
    assert "(forecast)" in found._repr_html_()
    # Nothing is trained twice.
    before = {path: path.stat().st_mtime_ns for path in Path(run.run_folder, "curve").rglob("state.pt")}
    assert txclf.curve(run.run_folder, points=2) == found
    assert {path: path.stat().st_mtime_ns for path in Path(run.run_folder, "curve").rglob("state.pt")} == before


@pytest.mark.parametrize("slope", [-0.5, -0.2])
def test_forecast_continues_a_power_law(slope: float) -> None:
    rows = [100, 200, 400, 800]
    found = learning_curve.forecast(rows, [1 - 2 * n**slope for n in rows], 100_000, "accuracy")
    assert [one["rows"] for one in found] == [1600, 3200]
    for one in found:
        assert one["accuracy"] == pytest.approx(1 - 2 * one["rows"] ** slope)
        assert one["low"] < one["accuracy"] < one["high"]


def test_range_of_the_forecast_holds_what_was_asked() -> None:
    draw, rows, valid_rows = np.random.default_rng(0), [100, 200, 400, 800, 1600], 500
    held = []
    for _ in range(400):
        scores = [1 - draw.binomial(valid_rows, 1.5 * n**-0.3) / valid_rows for n in rows]
        one = learning_curve.forecast(rows, scores, valid_rows, "accuracy")[0]
        held.append(one["low"] <= 1 - 1.5 * 3200**-0.3 <= one["high"])
    assert 0.9 < np.mean(held) <= 1.0


def test_forecast_of_errors_that_rise_is_level() -> None:
    for one in learning_curve.forecast([100, 200, 400], [0.8, 0.79, 0.78], 1000, "accuracy"):
        assert one["accuracy"] == pytest.approx(0.79, abs=0.001)
    (one, _) = learning_curve.forecast([100, 200], [1.0, 1.0], 1000, "accuracy")
    assert 0.0 <= one["low"] < 0.99 < one["accuracy"] <= one["high"] <= 1.0


def test_multilabel_parts_have_every_label(tmp_path: Path) -> None:
    files = [multilabel.write_lines(tmp_path / f"{n}.jsonl", multilabel.make(300, n)) for n in range(2)]
    whole = multilabel.tagging(tmp_path, (files[0], files[1]), "train.epochs=1")
    train(whole, prepare(whole), go_on)
    found = txclf.curve(whole.run_folder, points=2)
    assert {"rows", "f1_micro", "f1_macro", "loss"} == found["points"][0].keys()
    size = found["points"][0]["rows"]
    part = pq.read_table(f"{whole.run_folder}/curve/data/{size}.parquet")
    labels = {label for row in part[whole.data.label].to_pylist() for label in row}
    state = run_folder.read_run(whole.run_folder)
    assert state.manifest is not None
    assert labels == set(state.manifest.labels)


def test_labels_and_parts_that_no_run_can_use_are_left_out(tmp_path: Path) -> None:
    held_out = next(
        text
        for text in (f"rare {number}" for number in range(100))
        if shards.validation_rows(shards.text_hashes([(text,)]), 1, 0.1)[0]
    )
    data = write_csv(tmp_path / "train.csv", [*make_rows(300), (held_out, "rare")])
    run, _ = trained(tmp_path / "runs", data, "train.epochs=1", "train.batch_size=100")
    state = run_folder.read_run(run.run_folder)
    assert state.manifest is not None
    planned = learning_curve.plan(run.run_folder, points=2)
    assert planned.valid_rows == state.manifest.splits["valid"].rows - 1
    assert list(planned.parts) == [state.manifest.splits["train"].rows >> 1]  # a quarter is less than a batch
    for part in planned.parts.values():
        prepare(part)
    with pytest.raises(ConfigError, match="`points`: expected 1 or more, found 0"):
        learning_curve.plan(run.run_folder, points=0)
    large, _ = trained(tmp_path / "runs", data, "name=large", "train.epochs=1", "train.batch_size=200")
    with pytest.raises(DataError, match="a half of its rows is less than a step of the run needs"):
        learning_curve.plan(large.run_folder)


def test_curve_of_a_run_that_changed_is_refused(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", make_rows(150))
    run, _ = trained(tmp_path / "runs", data, "train.epochs=1")
    txclf.curve(run.run_folder, points=1)
    longer = tiny(tmp_path / "runs", data, "train.epochs=2")
    assert check_folder(longer, resume=True) is None
    train(longer, prepare(longer), go_on)
    assert not Path(run.run_folder, "curve/curve.json").exists()
    with pytest.raises(ConfigError, match=r"curve`: from before the run or its rows changed. Remove this folder"):
        txclf.curve(run.run_folder, points=1)


def test_runs_without_a_curve_are_refused(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a finished run"):
        learning_curve.plan(str(tmp_path))
    copies = pairs.pairs(tmp_path / "runs", pairs.write_pairs(tmp_path / "pairs.jsonl"), "train.epochs=1")
    train(copies, prepare(copies), go_on)
    with pytest.raises(ConfigError, match="`task: seq2seq` has no labels"):
        learning_curve.plan(copies.run_folder)
    few = trained(tmp_path / "runs", write_csv(tmp_path / "few.csv", make_rows(60)), "name=few", "train.epochs=1")[0]
    with pytest.raises(DataError, match="training rows are too few: a half has to have 32"):
        learning_curve.plan(few.run_folder)
    whole = trained(
        tmp_path / "runs", write_csv(tmp_path / "few.csv", make_rows(60)), "name=all", "train.train_on_valid=true"
    )[0]
    with pytest.raises(ConfigError, match="trained on its validation rows too"):
        learning_curve.plan(whole.run_folder)
    teacher = f"distill.teacher={few.run_folder}/model"
    student = trained(tmp_path / "runs", str(tmp_path / "few.csv"), "name=student", "train.epochs=1", teacher)[0]
    with pytest.raises(ConfigError, match=r"`distill\.teacher` has seen all rows"):
        learning_curve.plan(student.run_folder)
