"""What Ray Train knows of a run on its workers: name, settings, metrics and the committed checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import Result
from ray.train.torch import TorchTrainer

from tests.helpers.ray_processes import workers_of_ray
from tests.helpers.runs import lines, prepare_here, tiny
from txclf.artifacts import attempts, checkpoints
from txclf.training.distributed import ray_trainer
from txclf.training.progress import Progress
from txclf.training.train import train

pytestmark = [
    pytest.mark.usefixtures("cluster_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.mark.parametrize("attempts_of_run", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_ray_train_gets_every_validation_of_each_attempt(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, attempts_of_run: int
) -> None:
    results, fit = list[Result](), TorchTrainer.fit

    def recorded(trainer: TorchTrainer) -> Any:
        results.append(fit(trainer))
        return results[-1]

    monkeypatch.setattr(TorchTrainer, "fit", recorded)
    monkeypatch.setattr(ray_trainer, "POLL_S", 0.02)  # the run ends two seconds after its third validation
    run = tiny(
        tmp_path,
        data,
        "train.epochs=6",
        "train.early_stopping_patience=0",
        "train.keep_checkpoints=1",
        f"compute.workers={attempts_of_run}",
        "compute.cpus_per_worker=0.5",
    )
    killed = list[int]()

    def kill(progress: Progress) -> bool:
        if len(killed) < attempts_of_run - 1 and progress.validations >= 3:
            killed.append(progress.step)
            os.kill(workers_of_ray()[0], signal.SIGKILL)
        return False

    summary = train(run, prepare_here(run), kill)
    assert summary.attempts == attempts_of_run
    result = results[0]
    validations = [{key: value for key, value in line.items() if key != "valid_rows"} for line in lines(run)]
    validations = [line for line in validations if "valid_loss" in line]
    assert result.metrics == validations[-1]
    assert result.metrics_dataframe is not None
    steps = list(result.metrics_dataframe["step"])
    assert steps == sorted(set(steps))
    saved = checkpoints.committed(f"{run.run_folder}/checkpoints")
    # Reports of removed checkpoints may be lost with the worker; all others are there.
    again = attempts.read(run.run_folder)[-1].step
    assert {line["step"] for line in validations if line["step"] >= again} | {each.step for each in saved} <= set(steps)
    assert result.checkpoint
    assert result.checkpoint.path == saved[-1].path
    with result.checkpoint.as_directory() as folder:
        assert folder == saved[-1].path  # not a copy
    left_by_ray = {
        path.name for path in Path(run.run_folder).iterdir() if "ray" in path.name or "snapshot" in path.name
    }
    assert not left_by_ray

    state: Any = ray.get_actor("train_v2_state_actor", namespace="_train_state_actor")
    *_, shown = ray.get(state.get_train_runs.remote()).values()
    assert (shown.name, shown.status) == ("run-1", "FINISHED")
    assert shown.run_settings.train_loop_config["train"]["epochs"] == 6
