"""Searches, on a real Ray: what they try, keep, survive and leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.tune import ExperimentAnalysis, ResultGrid

from tests.helpers.ray_processes import workers_of_ray
from tests.helpers.runs import TINY, lines
from tests.helpers.searches import summary_of
from tests.helpers.waiting import PATIENCE_S, wait_until
from txclf import Classifier
from txclf.artifacts import attempts, checkpoints, trials
from txclf.artifacts.trials import Trial
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ClusterError, ConfigError
from txclf.data.prepare import prepare
from txclf.training.progress import Interrupted
from txclf.training.train import check_folder, train
from txclf.tuning import tune
from txclf.tuning.callbacks import SearchState
from txclf.tuning.runner import Show
from txclf.tuning.tune import Search

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
TXCLF = str(Path(sys.executable).with_name("txclf"))
RATES: dict[str, Any] = {"train.learning_rate": {"choice": [1e-5, 1e-4, 1e-3, 1e-2]}}


def search(folder: Path, data: str, space: dict[str, Any] | None = None, *words: str, **settings: Any) -> RunConfig:
    """Return a search whose run file is in a folder."""
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({"name": "search", "tune": {"space": space or RATES, **settings}}))
    return run_config.load(str(path), [*TINY, f"data.train={data}", f"storage={folder}/runs", "train.epochs=4", *words])


def go_on(standing: SearchState) -> bool:
    return False


def done(run: RunConfig, show: Show = go_on) -> Search:
    with tune.opened(run) as run:
        return tune.tune(run, tune.plan(run, lambda note: None), show)


def open_and_close(run: RunConfig, resume: bool = False) -> None:
    with tune.opened(run, resume):
        pass


def told(run: RunConfig) -> list[tuple[int, str, dict[str, Any], float]]:
    """Of each trial: its number, how it ended, its settings, its best."""
    metric = trials.metric(run)
    results = [trials.result(run.run_folder, trial, metric) for trial in trials.read(run.run_folder)]
    return [(one.trial.number, one.trial.state, one.trial.settings, one.best) for one in results]


def test_tune_writes_tables_a_run_file_and_a_model(tmp_path: Path, data: str) -> None:
    run = search(tmp_path, data, trials=6, max_concurrent=1, keep_ray_folder=True)  # in one order for ASHA
    found = done(run)
    assert (found.trials, found.failed) == (6, 0)
    check_ray_results(run, found)
    assert found.finished + found.stopped == 6
    assert found.epochs < found.epochs_to_the_end == 24
    table = pq.read_table(f"{run.run_folder}/trials.parquet").to_pylist()
    assert sorted(row["trial"] for row in table) == list(range(6))
    assert table[0]["trial"] == found.winner
    assert (
        table[0]["best_valid_calibrated_loss"]
        == min(row["best_valid_calibrated_loss"] for row in table)
        == found.best["valid_calibrated_loss"]
    )
    stopped = [row for row in table if row["state"] == "stopped"]
    assert all(row["epochs"] in (1.0, 3.0) for row in stopped)
    assert Classifier.load(f"{run.run_folder}/model")(["a good film"])[0].label in ("neg", "pos")
    assert not Path(run.run_folder, ".ray").exists()
    # The winner's run file does what the winner did, here without Ray and a search.
    best = run_config.load(f"{run.run_folder}/best.yaml")
    summary = train(best, prepare(best), lambda progress: False)
    assert summary.best["valid_calibrated_loss"] == pytest.approx(found.best["valid_calibrated_loss"], rel=1e-6)
    assert summary.best_step == table[0]["best_step"]
    # Calibrated the same: here on two cores, there in a worker, so the last digits may differ.
    calibration = Classifier.load(f"{run.run_folder}/model").metadata.calibration
    assert calibration
    assert summary.calibration
    assert calibration.temperature == pytest.approx(summary.calibration.temperature, rel=1e-3) != 1.0
    assert calibration.rows == summary.calibration.rows
    # Extended and stopped, the search is not finished any more.
    with tune.opened(run, extend=1) as more, pytest.raises(Interrupted):
        tune.tune(more, tune.plan(more), lambda standing: True)
    assert not Path(run.run_folder, tune.SUMMARY).exists()


def check_ray_results(run: RunConfig, found: Search) -> None:
    """Check Ray Tune's results of a search, in memory and from its kept folder."""
    table = {row["trial"]: row for row in pq.read_table(f"{run.run_folder}/trials.parquet").to_pylist()}
    kept = ExperimentAnalysis(f"{run.run_folder}/ray/search-1")
    for grid in (found.grid, ResultGrid(kept)):
        assert grid is not None
        assert len(grid) == 6
        best = grid.get_best_result("valid_calibrated_loss", "min", scope="all")
        assert best.metrics
        number = found.winner
        assert best.metrics["run_folder"] == trials.folder(run.run_folder, number)
        assert best.metrics["epoch"] == table[number]["epochs"]
        assert {"step", "valid_accuracy", "valid_f1_macro", "valid_calibrated_loss"} <= set(best.metrics)
        assert best.config == {"trial": number, **found.settings}
        shown = grid.get_dataframe(filter_metric="valid_calibrated_loss", filter_mode="min")
        for row in shown.to_dict("records"):
            assert row["valid_calibrated_loss"] == table[row["config/trial"]]["best_valid_calibrated_loss"]
            assert row["config/train.learning_rate"] == table[row["config/trial"]]["train.learning_rate"]
    assert "grid" not in json.loads(Path(run.run_folder, "search.json").read_text())


@pytest.mark.faults
def test_tune_failed_trial_has_its_reason_and_others_continue(tmp_path: Path, data: str) -> None:
    space = {"train.learning_rate": {"grid": [1e30, 1e-3]}, "model.hidden_size": {"grid": [16, 2**17]}}
    run = search(tmp_path, data, space, "train.max_grad_norm=0", trials=4, scheduler={"kind": "median"})
    found = done(run)
    assert (found.failed, found.finished) == (3, 1)
    reasons = {
        (trial.settings["train.learning_rate"], trial.settings["model.hidden_size"]): trial.reason
        for trial in trials.read(run.run_folder)
    }
    assert "the gradient is not finite at step 2" in reasons[1e30, 16]
    assert "allocate" in reasons[1e-3, 2**17]
    assert reasons[1e-3, 16] == ""
    assert found.settings == {"train.learning_rate": 1e-3, "model.hidden_size": 16}
    with pytest.raises(ConfigError, match="holds a search of `txclf tune`"):
        check_folder(run, resume=True)


def test_tune_all_trials_failed_raises_with_the_reason(tmp_path: Path, data: str) -> None:
    run = search(tmp_path, data, {"train.learning_rate": {"choice": [1e30]}}, "train.max_grad_norm=0", trials=2)
    with pytest.raises(ClusterError, match="no trial came to a validation; the first failed because: the gradient is"):
        done(run)


def start(run: RunConfig, folder: Path, data: str, *words: str) -> subprocess.Popen[str]:
    """`txclf tune` of a search in a process and on a Ray of its own."""
    settings = [*TINY, f"data.train={data}", f"storage={run.storage}", "train.epochs=4"]
    settings += [word for word in words if "=" in word]
    options = [word for word in words if "=" not in word]
    environment = {**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    command = [TXCLF, "tune", str(folder / "search.yaml"), *settings, *options]
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(command, env=environment, text=True, stdout=log, stderr=log)


@pytest.mark.faults
def test_tune_killed_driver_resumes_to_the_same_result(tmp_path: Path, data: str) -> None:
    (tmp_path / "whole").mkdir()
    # One at a time: then the order of the decisions, and so each of them, is the same in every search.
    settings: dict[str, Any] = {"trials": 8, "max_concurrent": 1, "scheduler": {"reduction_factor": 2}}
    whole = search(tmp_path / "whole", data, **settings)
    done(whole)
    broken = search(tmp_path, data, **settings)
    process = start(broken, tmp_path, data)

    def ended() -> list[Trial]:
        return [one for one in trials.read(broken.run_folder) if one.state in ("finished", "stopped")]

    wait_until(lambda: len(ended()) >= 3, process)
    with pytest.raises(ConfigError, match=rf"process {process.pid} on `.*` works in it since"):
        open_and_close(broken, resume=True)
    wait_until(lambda: len(ended()) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {one.number: attempts.read(trials.folder(broken.run_folder, one.number)) for one in ended()}
    assert 4 <= len(before) < 8
    again = start(broken, tmp_path, data, "--resume")
    assert again.wait(timeout=PATIENCE_S) == 0, (tmp_path / "driver.log").read_text()[-2000:]
    assert told(broken) == told(whole)
    for number, begun in before.items():
        assert attempts.read(trials.folder(broken.run_folder, number)) == begun
    one, two = (json.loads(Path(run.run_folder, tune.SUMMARY).read_text()) for run in (whole, broken))
    assert [one[key] for key in ("winner", "best", "settings")] == [two[key] for key in ("winner", "best", "settings")]


@pytest.mark.faults
def test_tune_interrupted_search_resumes_and_is_extended(tmp_path: Path, data: str) -> None:
    run = search(
        tmp_path, data, None, "train.epochs=40", "train.early_stopping_patience=0", trials=2, scheduler={"kind": "fifo"}
    )
    words = ["train.epochs=40", "train.early_stopping_patience=0"]
    process = start(run, tmp_path, data, *words)
    logs = [Path(trials.folder(run.run_folder, number), "metrics.jsonl") for number in range(2)]
    wait_until(lambda: all(log.exists() and b"valid_loss" in log.read_bytes() for log in logs), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 130
    said = (tmp_path / "driver.log").read_text()
    assert "Pass --resume to continue" in said
    assert "Traceback" not in said
    assert {one.state for one in trials.read(run.run_folder)} <= {"running", "waiting"}
    assert all(one.seconds > 0 for one in trials.read(run.run_folder) if one.state == "running")
    with tune.opened(run, resume=True) as again:
        tune.tune(again, tune.plan(again))
    for number in range(2):  # stopped between two validations, with a checkpoint of the very step
        assert [one.repeated for one in attempts.read(trials.folder(run.run_folder, number))] == [0, 0]
    steps = [line["step"] for line in lines(trials.run_of(run, 0, {})) if "train_loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    with tune.opened(run, extend=1) as again:
        tune.tune(again, tune.plan(again))
    assert [state for _, state, _, _ in told(run)] == ["finished"] * 3
    assert run_config.load(f"{run.run_folder}/run.yaml").tune.trials == 3


@pytest.mark.faults
def test_tune_ends_in_its_time_with_the_best_model_so_far(tmp_path: Path, data: str) -> None:
    words = ["train.epochs=20000", "train.early_stopping_patience=0", "tune.max_concurrent=1"]
    run = search(tmp_path, data, None, *words, trials=3, scheduler={"kind": "fifo"}, time="10s")
    found = done(run)
    assert (found.trials, found.finished, found.unfinished) == (1, 0, 1)
    assert [state for _, state, _, _ in told(run)] == ["running"]
    assert Classifier.load(f"{run.run_folder}/model")(["a good film"])
    steps = checkpoints.committed(f"{trials.folder(run.run_folder, 0)}/checkpoints")[-1].step
    with tune.opened(run, resume=True) as again:  # goes on where the time ended it
        tune.tune(again, tune.plan(again, lambda note: None))
    assert checkpoints.committed(f"{trials.folder(run.run_folder, 0)}/checkpoints")[-1].step > steps
    unscored = ["train.eval_every=20000", "name=short"]  # however fast the machine is
    short = search(tmp_path, data, None, *words, *unscored, trials=1, time="0.001s")
    with pytest.raises(ClusterError, match=r"no trial came to a validation within `tune.time` \(0.001s\). Raise it."):
        done(short)


@pytest.mark.faults
def test_tune_optuna_starts_with_the_points_to_evaluate(tmp_path: Path, data: str) -> None:
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-2]}, "tokenizer.lowercase": {"choice": [True, False]}}
    points = [{"train.learning_rate": 5e-3, "tokenizer.lowercase": False}]
    run = search(tmp_path, data, space, trials=5, search="optuna", points_to_evaluate=points)
    found = done(run)
    assert found.trials == 5
    assert told(run)[0][2] == points[0]
    assert len(list(Path(run.storage, "prepared").iterdir())) == 2


@pytest.mark.faults
def test_tune_pbt_copies_weights_and_perturbs_settings(tmp_path: Path, data: str) -> None:
    settings: dict[str, Any] = {"trials": 4, "scheduler": {"kind": "pbt", "perturb_every": 1}}
    space = {"train.learning_rate": {"grid": [1e-6, 1e-4, 1e-3, 1e-2]}}
    run = search(tmp_path, data, space, "train.epochs=8", "train.early_stopping_patience=0", **settings)
    found = done(run)
    assert found.finished == 4
    changes = {one.number: one.changes for one in trials.read(run.run_folder) if one.changes}
    assert changes
    for number, made in changes.items():
        for change in made:
            assert change["from"] != number
            assert change["settings"]["train.learning_rate"] in space["train.learning_rate"]["grid"]
        kept = run_config.load(f"{trials.folder(run.run_folder, number)}/run.yaml")
        assert kept.train.learning_rate == made[-1]["settings"]["train.learning_rate"]
    for number in range(4):
        steps = [line["step"] for line in lines(trials.run_of(run, number, {})) if "train_loss" in line]
        assert steps[-1] == 8 * 17


@pytest.mark.faults
def test_tune_killed_trial_resumes_from_its_checkpoint(tmp_path: Path, data: str) -> None:
    words, points = ["train.epochs=30", "train.early_stopping_patience=0"], [{"train.learning_rate": 1e-3}]
    run = search(tmp_path, data, None, *words, trials=1, scheduler={"kind": "fifo"}, points_to_evaluate=points)
    killed = list[int]()

    def kill(standing: SearchState) -> bool:
        if not killed and standing.results and standing.results[0].epochs >= 5:
            killed.extend(workers_of_ray("Trainable"))
            os.kill(killed[0], signal.SIGKILL)
        return False

    assert done(run, kill).finished == 1
    assert len(killed) == 1
    assert len(attempts.read(trials.folder(run.run_folder, 0))) == 2
    best = run_config.load(f"{run.run_folder}/best.yaml")
    train(best, prepare(best), lambda progress: False)
    # Here on all cores, there in a worker on one, so the last digits differ.
    for here, there in zip(lines(best), lines(trials.run_of(run, 0, {})), strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-6)


@pytest.mark.faults
def test_tune_trials_of_two_workers_free_their_cpus(tmp_path: Path, data: str) -> None:
    words = ["compute.workers=2", "compute.cpus_per_worker=1.5"]
    run = search(tmp_path, data, None, *words, trials=3, points_to_evaluate=[{"train.learning_rate": 1e-2}])
    killed = list[int]()

    def kill(standing: SearchState) -> bool:
        if not killed and any(one.epochs for one in standing.results.values()):
            killed.extend(workers_of_ray("Trainable"))
            os.kill(killed[0], signal.SIGKILL)
        return False

    found = done(run, kill)
    assert found.failed == 0
    assert len(killed) == 1
    assert sum(len(attempts.read(trials.folder(run.run_folder, number))) for number in range(3)) == 4
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 3.0)  # type: ignore[no-untyped-call]


def test_tune_too_many_workers_raises(tmp_path: Path, data: str) -> None:
    run = search(tmp_path, data, None, "compute.workers=9")
    with pytest.raises(ClusterError, match=r"9\) x `compute.cpus_per_worker` \(1\) = 9 CPUs, but Ray has 3"):
        done(run)


def test_tune_stopped_before_the_first_trial_raises_interrupted(tmp_path: Path, data: str) -> None:
    with pytest.raises(Interrupted):
        done(search(tmp_path, data), lambda standing: True)


REFUSED: list[tuple[dict[str, Any], list[str], str]] = [
    ({"mode": "max"}, [], "`tune.mode: max` of `valid_calibrated_loss` looks for the worst"),
    ({"scheduler": {"kind": "pbt"}, "max_concurrent": 2}, [], "a population is trained as a whole"),
    ({}, ["train.train_on_valid=true"], "trials are compared on the validation rows"),
    ({}, ["compute.workers=[1, 2]"], "needs a fixed number of workers"),
    (
        {"scheduler": {"kind": "pbt"}, "space": {"train.epochs": {"choice": [1, 2]}}},
        [],
        "cannot change\\. Choose from train",
    ),
    ({"scheduler": {"kind": "pbt"}}, ["compute.workers=2"], "needs trials of one worker"),
    (
        {"search": "optuna", "space": {"data.valid_fraction": {"uniform": [0.1, 0.2]}}},
        [],
        "a key that changes the data needs `choice`",
    ),
    ({"space": {"model.num_heads": {"choice": [3, 5]}}}, [], "no valid settings for trial 0"),
]


@pytest.mark.parametrize(("settings", "words", "message"), REFUSED)
def test_opened_impossible_search_raises_and_writes_nothing(
    tmp_path: Path, data: str, settings: dict[str, Any], words: list[str], message: str
) -> None:
    run = search(tmp_path, data, settings.pop("space", None), *words, **settings)
    with pytest.raises(ConfigError, match=message):
        open_and_close(run)
    assert not Path(run.run_folder).exists()


def test_check_population_of_a_frozen_encoder_keeps_its_vectors() -> None:
    space = {"train.token_dropout": {"choice": [0.0, 0.1]}}
    model = {"pretrained": "folder", "freeze": "encoder"}
    run = run_config.parse({"model": model, "tune": {"scheduler": {"kind": "pbt"}, "space": space}})
    with pytest.raises(ConfigError, match="`pbt` changes it later"):
        tune.check(run)


def test_opened_taken_folder_raises(tmp_path: Path, data: str) -> None:
    run = search(tmp_path, data)
    with pytest.raises(ConfigError, match=r"no search to resume\. Start it without --resume"):
        open_and_close(run, resume=True)
    with tune.opened(run), pytest.raises(ConfigError, match=r"process \d+ on `.*` works in it since"):
        open_and_close(run, resume=True)
    with pytest.raises(ConfigError, match=r"exists already\. Pass --resume to continue it"):
        open_and_close(run)
    with pytest.raises(ConfigError, match=r"differs in `train\.epochs` \(4, now 5\), `tune\.search` \(random, now opt"):
        open_and_close(search(tmp_path, data, None, "train.epochs=5", search="optuna"), resume=True)
    with pytest.raises(ConfigError, match=r"`tune\.trials: 32`: the search has 16 trials\. Pass --extend 16\."):
        open_and_close(search(tmp_path, data, trials=32), resume=True)
    with pytest.raises(ConfigError, match="nothing to search"):
        open_and_close(search(tmp_path, data, None, "tune.space={}"), resume=True)
    with tune.opened(search(tmp_path, data), extend=16) as more:  # extended once it begins
        assert more.tune.trials == 32 > run_config.load(f"{run.run_folder}/run.yaml").tune.trials


def test_search_in_a_notebook_shows_the_winner_and_its_settings() -> None:
    shown = summary_of(winner=2, settings={"train.learning_rate": 0.001})._repr_html_()
    assert "<td>winner</td><td>2</td>" in shown
    assert "<td>train.learning_rate</td><td>0.001</td>" in shown
