"""Private API of Ray with which a local Ray, for one program alone, starts in few and quick processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from txclf.core import fork_script

WORKER = "ray._private.workers.default_worker"
"""The main module of Ray's worker processes."""

STARTED = b"txclf-local"
"""Key in the store of a Ray that `init` has started."""


def init(**settings: Any) -> None:
    """Call `ray.init` to start a Ray without the monitor of an autoscaler, without API server and log monitor.

    They are Python processes that take a second each to start. Only `log_to_driver` needs the log monitor. The workers
    are forked, if there is a fork server. Ray has options for all of it, but not `ray.init`.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/node.py
    """
    import ray
    from ray._private import node, parameter
    from ray.experimental.internal_kv import _internal_kv_put

    kinds: tuple[Any, Any] = parameter, node.Node
    whole, start_api_server = kinds[0].RayParams, kinds[1].start_api_server

    def lean(**options: Any) -> Any:
        if fork_script.SERVER in os.environ:
            options["worker_path"] = fork_script.__file__
        return whole(no_monitor=True, include_log_monitor=settings["log_to_driver"], **options)

    try:
        kinds[0].RayParams, kinds[1].start_api_server = lean, lambda self, **options: None
        ray.init(**settings)
    finally:
        kinds[0].RayParams, kinds[1].start_api_server = whole, start_api_server
    _internal_kv_put(STARTED, b"1")


def is_joined() -> bool:
    """Return True if `init` has started the Ray that this process is connected to."""
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(STARTED) is not None


def start_trainer_lightly(trainer: Any) -> None:
    """Have a trainer on a Ray of `init` start its actors in processes of the pool, and no cleaner.

    The controller and the workers get processes of their own for a few environment variables, which all processes of a
    local Ray have. The cleaner frees the resources of a dead controller, with which a local Ray ends. Ray Train has no
    option for either.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/api/data_parallel_trainer.py
    """
    import ray
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController

    all_callbacks, cleaner = trainer._create_default_callbacks, PlacementGroupCleanerCallback

    class LocalController(TrainController):
        def __init__(self, **arguments: Any) -> None:
            from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

            kind: Any = WorkerGroup
            kind._get_worker_runtime_env = staticmethod(lambda custom_runtime_env: custom_runtime_env)
            super().__init__(**arguments)

    def start(**arguments: Any) -> Any:
        controller: Any = ray.remote(num_cpus=0)(LocalController).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    trainer._create_default_callbacks = lambda: [one for one in all_callbacks() if not isinstance(one, cleaner)]
    trainer._initialize_and_run_controller = start


@contextmanager
def light_trials() -> Iterator[None]:
    """Have Ray Tune start the trials of the block in processes of the pool, for the reason of `start_trainer_lightly`.

    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/tune/execution/class_cache.py
    """
    from ray.tune.execution import class_cache

    module: Any = class_cache
    kept = module.DEFAULT_ENV_VARS, module.ENV_VARS_TO_PROPAGATE
    module.DEFAULT_ENV_VARS, module.ENV_VARS_TO_PROPAGATE = {}, set()
    try:
        yield
    finally:
        module.DEFAULT_ENV_VARS, module.ENV_VARS_TO_PROPAGATE = kept


@contextmanager
def unseeded_class_ids() -> Iterator[None]:
    """Give the actor classes that the block imports ids of the system, not of Ray's generator.

    Ray's generator is seeded when it is used first. Forks of a process that has used it would draw the same ids for
    their placement groups. Source: https://github.com/ray-project/ray/blob/ray-2.60.0/src/ray/common/id.h
    """
    from ray import actor

    module: Any = actor
    kind = module.ActorClassID
    module.ActorClassID = SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))
    try:
        yield
    finally:
        module.ActorClassID = kind
