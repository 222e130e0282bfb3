"""A local Ray rests on private parts of Ray that are still there."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from ray.train.torch import TorchTrainer

from tests.helpers.forks import require_different_ids
from tests.helpers.upgrades import upgrade
from txclf.upstream import local_ray


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own context
def test_light_trainer_has_no_cleaner() -> None:
    with upgrade("ray"):
        from ray.train.v2.api import data_parallel_trainer

        source = inspect.getsource(data_parallel_trainer.DataParallelTrainer)
        assert "callbacks=self._create_default_callbacks()" in source
        assert "self._initialize_and_run_controller(" in source
        assert "ray.get(controller.run.remote())" in source
        assert "return ray.get(controller.get_result.remote())" in source
        trainer: Any = TorchTrainer(lambda: None)
        before = [type(one).__name__ for one in trainer._create_default_callbacks()]
        local_ray.start_trainer_lightly(trainer)
        after = [type(one).__name__ for one in trainer._create_default_callbacks()]
        assert sorted([*after, "PlacementGroupCleanerCallback"]) == sorted(before)


def test_light_workers_have_no_environment_of_their_own() -> None:
    with upgrade("ray"):
        from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

        assert "self._get_worker_runtime_env(\n            custom_runtime_env=" in inspect.getsource(WorkerGroup)
        assert WorkerGroup._get_worker_runtime_env({"pip": ["x"]}) == {"pip": ["x"], "env_vars": {}}


def test_light_trials_have_no_environment_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    with upgrade("ray"):
        from ray.tune.execution import class_cache

        class Trial:
            pass

        cache: Any = class_cache._ActorClassCache
        with local_ray.light_trials():
            inside = cache().get(Trial)._default_options["runtime_env"]
        outside = cache().get(Trial)._default_options["runtime_env"]
        assert not inside
        assert outside["env_vars"] == {"PL_DISABLE_FORK": "1", "AWS_ACCESS_KEY_ID": "x"}


def test_unseeded_class_ids_leave_the_generator_of_ray_alone() -> None:
    with upgrade("ray"):
        require_different_ids("""
from txclf.upstream import local_ray
import ray
with local_ray.unseeded_class_ids():
    first, second = (ray.remote(type("Actor", (), {})) for _ in range(2))
    ids = {kind.__ray_metadata__.class_id for kind in (first, second)}
    assert len(ids) == 2 and {type(one).__name__ for one in ids} == {"ActorClassID"}
""")
