"""Functions as tasks with the resources of a worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, DataError
from txclf.training.distributed import worker_task

pytestmark = pytest.mark.usefixtures("local_ray")


def _where(value: int) -> tuple[int, int, dict[str, Any], int]:
    context: Any = ray.get_runtime_context()
    return value, os.getpid(), context.get_assigned_resources(), torch.get_num_threads()


def _refuse() -> None:
    raise DataError("`a.parquet`: damaged. Copy it again.")


def _die(marks: str) -> None:
    Path(marks, str(os.getpid())).touch()
    if len(os.listdir(marks)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _count(marks: str) -> Iterator[int]:
    """Yield 0 and 1, in the second process after the first died, and go on for a minute."""
    yield 0
    _die(marks)
    try:
        yield 1
        for _ in range(600):
            time.sleep(0.1)
        Path(marks, "finished").touch()
    finally:
        Path(marks, "ended").touch()


def _count_and_refuse() -> Iterator[int]:
    yield 0
    _refuse()


def _die_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_call_has_the_resources_of_a_worker_and_keeps_the_type_of_errors() -> None:
    compute = Compute(workers=2, cpus_per_worker=2)
    value, process, resources, threads = worker_task.call(compute, _where, 7)
    assert (value, resources, threads) == (7, {"CPU": 2.0}, 2)
    assert process != os.getpid()
    with pytest.raises(DataError, match="Copy it again") as caught:
        worker_task.call(compute, _refuse)
    assert type(caught.value) is DataError


def test_task_with_a_gpu_leaves_no_process_that_holds_its_memory() -> None:
    with_gpu, without = (worker_task._task(Compute(workers=1, gpus_per_worker=gpus), _where) for gpus in (0.5, 0))
    assert (with_gpu._max_calls, without._max_calls) == (1, 0)


def test_call_has_the_priority_of_this_process() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert worker_task.call(Compute(workers=1), os.getpriority, os.PRIO_PROCESS, 0) == own


def test_call_in_a_placement_group_without_room_runs_outside_of_it() -> None:
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 0.01}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=0.01, scheduling_strategy=inside)
    def trial() -> dict[str, Any]:
        return worker_task.call(Compute(workers=1), _where, 0)[2]

    assert ray.get(trial.remote(), timeout=60) == {"CPU": 1.0}
    ray.util.remove_placement_group(group)


def test_call_killed_process_is_started_again(tmp_path: Path) -> None:
    worker_task.call(Compute(workers=1), _die, str(tmp_path))
    assert len(os.listdir(tmp_path)) == 2


def test_stream_killed_process_is_started_again_and_closing_ends_the_task(tmp_path: Path) -> None:
    with closing(worker_task.stream(Compute(workers=1), _count, str(tmp_path))) as values:
        assert list(islice((value for value in values if value is not None), 2)) == [0, 1]
        assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / "finished").exists()


def test_stream_keeps_the_type_of_errors() -> None:
    values = (value for value in worker_task.stream(Compute(workers=1), _count_and_refuse) if value is not None)
    assert next(values) == 0
    with pytest.raises(DataError, match="Copy it again") as caught:
        next(values)
    assert type(caught.value) is DataError


def test_stream_without_a_free_cpu_can_be_stopped(tmp_path: Path) -> None:
    def first(compute: Compute) -> object:
        with closing(worker_task.stream(compute, _count_and_refuse)) as values:
            return next(values)

    with closing(worker_task.stream(Compute(workers=1, cpus_per_worker=3), _count, str(tmp_path))) as taking_all:
        assert list(islice((value for value in taking_all if value is not None), 2)) == [0, 1]
        assert first(Compute(workers=1)) is None


@pytest.mark.faults
def test_call_process_that_always_dies_says_how_to_continue() -> None:
    with pytest.raises(ClusterError, match="pass --resume to continue"):
        worker_task.call(Compute(workers=1), _die_always)
