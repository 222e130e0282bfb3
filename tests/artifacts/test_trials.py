"""The trials of a search: ranking, tables, draws and importance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from txclf.artifacts import trials
from txclf.artifacts.trials import Result, Trial
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError


def search(folder: Path, space: dict[str, Any], **tune: Any) -> RunConfig:
    tune = {"space": space, "metric": "valid_loss", **tune}
    return run_config.parse({"storage": str(folder), "name": "search", "tune": tune})


def logged(run: RunConfig, number: int, settings: dict[str, Any], losses: list[float]) -> Result:
    """Write a trial with one validation loss per epoch of ten steps, and return its result."""
    trial = Trial(number=number, settings=settings, state="finished")
    trials.write(run.run_folder, trial)
    lines = [{"step": 5, "epoch": 0.5, "train_loss": 1.0}]
    lines += [{"step": 10 * n, "epoch": float(n), "valid_loss": loss} for n, loss in enumerate(losses, 1)]
    path = Path(trials.folder(run.run_folder, number), "metrics.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return trials.result(run.run_folder, trial, "valid_loss")


def test_ranked_uses_the_best_validation_not_the_last(tmp_path: Path) -> None:
    run = search(tmp_path, {"seed": {"choice": [1]}})
    results = [
        logged(run, 0, {}, [0.9, 0.8, 0.7]),
        logged(run, 1, {}, [0.9, 0.3, 2.0]),
        logged(run, 2, {}, [0.3, 0.5]),
        logged(run, 3, {}, []),
        logged(run, 4, {}, [0.9, 0.3, 1.0]),
    ]
    assert [result.trial.number for result in trials.ranked(results, "valid_loss")] == [2, 1, 4, 0, 3]
    assert results[1][1:] == (3.0, 0.3, 20, 2.0)
    assert math.isnan(results[3].best)
    flipped = [result._replace(best=-result.best) for result in results]
    assert [result.trial.number for result in trials.ranked(flipped, "valid_accuracy")] == [2, 1, 4, 0, 3]


def test_write_table_has_every_trial(tmp_path: Path) -> None:
    run = search(tmp_path, {"seed": {"choice": [1]}})
    settings: list[dict[str, Any]] = [
        {"train.learning_rate": 0.1, "train.betas": [0.9, 0.99], "model.pooling": "mean"},
        {"seed": 3},
    ]
    results = [logged(run, 0, settings[0], [0.5, 0.25]), logged(run, 1, settings[1], [])]
    trials.write_table(run.run_folder, results, "valid_loss")
    table = pq.read_table(f"{run.run_folder}/trials.parquet")
    assert table.to_pylist()[0] == {
        "trial": 0,
        "state": "finished",
        "train.learning_rate": 0.1,
        "train.betas": "[0.9, 0.99]",
        "model.pooling": "mean",
        "seed": None,
        "best_valid_loss": 0.25,
        "best_epoch": 2.0,
        "best_step": 20,
        "epochs": 2.0,
        "seconds": 0.0,
        "reason": "",
    }
    assert table["best_valid_loss"].to_pylist() == [0.25, None]
    assert pyarrow.csv.read_csv(f"{run.run_folder}/trials.csv").column_names == table.column_names


def test_importance_compares_at_an_epoch_that_all_trials_reached(tmp_path: Path) -> None:
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-1]}, "model.num_layers": {"choice": [1, 2]}}
    run = search(tmp_path, space | {"seed": {"choice": [3]}})
    results = []
    for number in range(20):
        settings = trials.draw(run, number)
        loss = abs(math.log10(settings["train.learning_rate"]) + 3)
        # The stopped trials do not reach the second epoch, in which all become equal.
        results.append(logged(run, number, settings, [loss] if number % 2 else [loss, 0.01]))
    shares = trials.importance(run, results)
    assert set(shares) == {"train.learning_rate", "model.num_layers"}
    assert shares["train.learning_rate"] > 0.8
    assert trials.importance(run, results[:3]) == {}
    equal = [logged(run, number, trials.draw(run, number), [0.5]) for number in range(20, 26)]
    assert trials.importance(run, equal) == {}


def test_draw_invalid_settings_are_drawn_again(tmp_path: Path) -> None:
    space = {"model.num_heads": {"choice": [4, 5, 6]}, "model.hidden_size": {"choice": [40, 24]}}
    run = search(tmp_path, space)
    for number in range(20):
        settings = trials.draw(run, number)
        assert settings["model.hidden_size"] % settings["model.num_heads"] == 0
    run = search(tmp_path, {"model.num_heads": {"choice": [5, 7]}, "model.hidden_size": {"choice": [128, 256]}})
    with pytest.raises(ConfigError, match=r"(?s)no valid settings for trial 0: .*must divide `hidden_size`"):
        trials.draw(run, 0)


def test_run_of_returns_an_ordinary_run(tmp_path: Path) -> None:
    run = search(tmp_path, {"train.learning_rate": {"choice": [0.5]}}, metric="valid_f1_macro")
    trial_run = trials.run_of(run, 3, trials.draw(run, 3))
    assert trial_run.run_folder == f"{tmp_path}/search/trials/0003"
    assert trial_run.train.learning_rate == 0.5
    assert trial_run.train.monitor == "valid_f1_macro"
    assert not trial_run.tune.space
    assert run_config.parse(__import__("yaml").safe_load(run_config.dump(trial_run))) == trial_run


def test_changes_data_is_true_of_all_keys_that_determine_the_prepared_data() -> None:
    keys = [
        "seed",
        "data.text",
        "tokenizer.kind",
        "model.pretrained",
        "model.revision",
        "model.dropout",
        "train.epochs",
    ]
    assert [trials.changes_data(key) for key in keys] == [True] * 5 + [False] * 2
