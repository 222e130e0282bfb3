"""Errors of Ray Train as the user reads them, and the resources that a run asks for; whole runs are in end_to_end."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train import ControllerError, FailureConfig, RunConfig, WorkerGroupError, get_context
from ray.train.torch import TorchTrainer
from torch import distributed

from tests.helpers.runs import prepare_here, tiny
from tests.helpers.waiting import wait_until
from txclf.artifacts import attempts, checkpoints
from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, DataError, StorageError
from txclf.training.distributed import ray_trainer
from txclf.training.distributed.gloo import GlooTorchConfig
from txclf.training.distributed.monitor import StalledWorker
from txclf.training.job import WorkerConfig
from txclf.training.progress import Interrupted
from txclf.training.train import train

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


def hang(settings: dict[str, str]) -> None:
    """Work of two ranks of which the second does not come to the second collective in time."""
    with open(settings["starts"], "a") as file:
        file.write(f"{get_context().get_world_rank()}\n")
    distributed.all_reduce(torch.ones(1))
    if get_context().get_world_rank() == 1:
        time.sleep(8)
    distributed.all_reduce(torch.ones(1))


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_explain_collective_that_times_out_on_every_attempt(tmp_path: Path, local_ray: None) -> None:
    trainer = TorchTrainer(
        hang,
        train_loop_config={"starts": str(tmp_path / "starts")},
        torch_config=GlooTorchConfig("gloo", timeout_s=2),  # type: ignore[arg-type]
        scaling_config=ray_trainer._scaling(Compute(workers=2, cpus_per_worker=0.5)),
        run_config=RunConfig(
            name="hang", storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(max_failures=1)
        ),
    )
    with pytest.raises(WorkerGroupError) as info:
        trainer.fit()
    assert (tmp_path / "starts").read_text().split() in (list("0101"), list("0110"), list("1001"), list("1010"))
    error = ray_trainer._explain(info.value, None, COMPUTE)
    assert isinstance(error, ClusterError)
    assert re.match(
        r"rank \d: lost contact with another worker \((Timed out waiting|Connection|Read error)", str(error)
    )
    assert "That was failure 2 (`compute.max_failures`)" in str(error)
    assert "__w/" not in str(error)


def test_explain_prefers_the_error_that_is_no_lost_contact() -> None:
    lost, defect = RuntimeError("[/w/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"), ValueError("x")
    wrapped = WorkerGroupError("failed", worker_failures={0: lost, 1: defect})
    assert ray_trainer._explain(wrapped, None, COMPUTE) is wrapped


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


def test_run_trainer_leaves_an_error_before_the_start_in_the_outcome(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise StorageError(f"`{path}`: cannot be removed")

    monkeypatch.setattr(storage, "remove_folder", fail)
    run, outcome = tiny(tmp_path, data, "compute.workers=2"), ray_trainer.Outcome()
    ray_trainer._run_trainer(WorkerConfig(run, "nowhere"), None, outcome)
    assert isinstance(outcome.error, StorageError)


def test_heartbeat_has_the_memory_of_the_gpu_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = [0, 0, 7 * 2**30, 0]  # of four visible GPUs, this worker trains on the third
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(reserved))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device=0: reserved[device])
    assert ray_trainer._gpu_bytes() == 7 * 2**30


def test_explain_workers_that_did_not_start_after_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txclf.ray_cluster.waiting", lambda compute: "waiting for workers")
    stalled = StalledWorker("rank 1: no step for 9 s", None)
    error = ray_trainer._explain(ControllerError(RuntimeError("no room")), stalled, COMPUTE)
    assert str(error) == "Ray could not start the workers: no room; waiting for workers"


@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_fit_stopped_before_the_workers_start_never_trains(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "compute.workers=1", "compute.cpus_per_worker=0.5", "compute.max_failures=0")
    with pytest.raises(Interrupted):
        train(run, prepare_here(run), lambda progress: True)
    wait_until(lambda: not [one for one in threading.enumerate() if "_run_trainer" in one.name])
    assert not attempts.read(run.run_folder)
    assert not checkpoints.committed(f"{run.run_folder}/checkpoints")
