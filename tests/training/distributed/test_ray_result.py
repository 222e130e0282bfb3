"""A run as Ray Train's `Result`, from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ray.train import Result

import txclf
from tests.helpers.runs import tiny, trained
from txclf.artifacts import checkpoints
from txclf.training.distributed.ray_result import ray_result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[str, Result]:
    """Return a run of eight validations of which one or two checkpoints are left."""
    words = ["train.epochs=4", "train.eval_every=0.5", "train.keep_checkpoints=1", "train.early_stopping_patience=0"]
    run, _ = trained(tmp_path_factory.mktemp("result"), data, *words)
    return run.run_folder, txclf.ray_result(run.run_folder)


def test_ray_result_checkpoint_loads(result: tuple[str, Result]) -> None:
    folder, found = result
    last = checkpoints.committed(f"{folder}/checkpoints")[-1]
    assert found.checkpoint
    with found.checkpoint.as_directory() as here:
        assert here == last.path
        [path] = Path(here).glob("state*.pt")
        state = torch.load(path, weights_only=True)
    assert state["step"] == last.step
    assert found.metrics
    assert found.metrics["step"] == last.step


def test_ray_result_lists_every_validation_and_the_checkpoints_that_exist(result: tuple[str, Result]) -> None:
    folder, found = result
    assert found.metrics_dataframe is not None
    assert len(found.metrics_dataframe) == 8
    assert found.best_checkpoints
    saved = {each.path: each for each in checkpoints.committed(f"{folder}/checkpoints")}
    assert {checkpoint.path for checkpoint, _ in found.best_checkpoints} == set(saved)
    for checkpoint, metrics in found.best_checkpoints:
        assert metrics == saved[checkpoint.path].metrics | {"step": metrics["step"], "epoch": metrics["epoch"]}
    losses = found.metrics_dataframe["valid_calibrated_loss"]
    best = found.get_best_checkpoint("valid_calibrated_loss", "min")
    assert best
    assert saved[best.path].metrics["valid_calibrated_loss"] == losses.min()


def test_ray_result_of_a_stopped_run_without_a_validation_has_its_checkpoint(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data)
    with pytest.raises(txclf.Interrupted):
        txclf.train(run, on_progress=lambda progress: True)
    found = ray_result(run.run_folder)
    assert found.metrics is None
    assert found.checkpoint
    assert found.best_checkpoints == []


def test_ray_result_of_another_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(txclf.TxclfError, match=str(tmp_path)):
        txclf.ray_result(tmp_path)
