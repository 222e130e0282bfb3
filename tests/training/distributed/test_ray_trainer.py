"""Errors of Ray Train as the user reads them, and the resources that a run asks for; whole runs are in end_to_end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, WorkerGroupError

from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, DataError
from txclf.training.distributed import ray_trainer
from txclf.training.distributed.monitor import StalledWorker

COMPUTE = Compute(workers=2, max_failures=1)


def test_explain_finds_our_error_inside_those_of_ray() -> None:
    ours = DataError("`a.csv`: row 3")
    wrapped = WorkerGroupError("failed", worker_failures={0: RuntimeError("other"), 1: ours})
    assert ray_trainer._explain(wrapped, None, COMPUTE) is ours


def test_explain_names_the_stalled_worker_and_the_number_of_failures() -> None:
    error = ray_trainer._explain(RuntimeError("killed"), StalledWorker("rank 1: no step for 9 s", None), COMPUTE)
    assert isinstance(error, ClusterError)
    assert str(error) == "rank 1: no step for 9 s. That was failure 2 (`compute.max_failures`)."


def test_explain_says_that_workers_died_and_how_to_continue() -> None:
    error = ray_trainer._explain(
        WorkerGroupError("failed", worker_failures={0: ray.exceptions.RayActorError()}), None, COMPUTE
    )
    assert isinstance(error, ClusterError)
    assert "workers died 2 times (`compute.max_failures`)" in str(error)
    assert "pass --resume to continue" in str(error)


def test_explain_returns_an_unknown_error_as_it_is() -> None:
    error = ValueError("a defect")
    assert ray_trainer._explain(error, None, COMPUTE) is error
    assert ray_trainer._cause(ControllerError(error), DataError) is None


def test_scaling_asks_for_what_a_worker_takes() -> None:
    scaling = ray_trainer._scaling(Compute(workers=2, cpus_per_worker=1.5))
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (2, False, {"CPU": 1.5})
    elastic: Any = ray_trainer._scaling(Compute(workers=(1, 3), gpus_per_worker=0.5))
    assert elastic.num_workers == (1, 3)
    assert elastic.use_gpu
    assert elastic.resources_per_worker == {"CPU": 1.0, "GPU": 0.5}


def test_release_does_nothing_without_a_killed_driver(tmp_path: Path) -> None:
    ray_trainer.release(str(tmp_path / "run"))
    assert not storage.exists(str(tmp_path / "run"))
