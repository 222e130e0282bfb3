"""Searches on machines with GPUs, as far as they can be planned without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from tests.helpers.runs import tiny
from txclf import ray_cluster
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.tuning import tune


def search(folder: Path, data: str, *words: str) -> RunConfig:
    """Return a search of learning rates."""
    return tiny(folder, data, "tune.space={train.learning_rate: {choice: [0.001, 0.01]}}", *words)


def test_prepare_all_fp16_needs_a_gpu_of_the_trials_and_not_of_this_process(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for here in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here)
        without, with_gpus = (
            search(tmp_path, data, "train.precision=fp16", f"compute.gpus_per_worker={gpus}") for gpus in (0, 1)
        )
        with pytest.raises(ConfigError, match=r"`train\.precision: fp16` needs a GPU"):
            tune.prepare_all(without, print)
        assert len(tune.prepare_all(with_gpus, print)) == 1
    with pytest.raises(ConfigError, match=r"`compute.gpus_per_worker` \(4\): a worker trains on one GPU"):
        tune.prepare_all(search(tmp_path, data, "compute.gpus_per_worker=4"), print)


@pytest.mark.parametrize(
    ("words", "grows", "expected"),
    [
        ((), False, 2),
        ((), True, 20),
        (("tune.search=optuna",), True, tune.OPTUNA_AT_A_TIME),
        (("tune.max_concurrent=5",), True, 5),
        (("tune.max_concurrent=5",), False, 2),
    ],
    ids=str,
)
def test_concurrency_asks_an_autoscaler_for_the_nodes_of_all_trials(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], grows: bool, expected: int
) -> None:
    node = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray_cluster, "autoscales", lambda: grows)
    run = search(tmp_path, data, "tune.trials=20", "compute.gpus_per_worker=1", *words)
    assert tune.concurrency(run)[0] == expected


def test_plan_names_gpus_that_the_trials_do_not_take(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    notes: list[str] = []
    for gpus in (0, 1):
        tune.plan(search(tmp_path, data, "tune.max_concurrent=2", f"compute.gpus_per_worker={gpus}"), notes.append)
    assert [line for line in notes if "GPU(s)" in line] == [
        "Ray has 2 GPU(s), of which the workers take none. Set the GPUs per worker to 1 to use them."
    ]
