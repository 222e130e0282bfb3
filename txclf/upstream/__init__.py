"""Private API of Ray, Lightning and torch that txclf depends on.

All of it is gathered here, so that an upgrade breaks one package; `tests/upstream/` checks each item against the
installed versions. Ray and Lightning are imported inside the functions, because the training workers import this module
without Ray Tune and the command line must stay quick. A mixin precedes the Ray class that it extends.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from ray.train import RunConfig
    from ray.train.backend import Backend
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
    from torch import nn


class ReplayableBrackets:
    """Mixin for `ASHAScheduler` that chooses the bracket of a trial and records validations of an earlier process.

    Ray offers no way to refill the rungs of ASHA after a restart, and draws the bracket of a trial from NumPy's global
    random state. Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/tune/schedulers/async_hyperband.py
    """

    _brackets: list[Any]
    _metric: str | None
    _metric_op: float | None
    _trial_info: dict[str, Any]

    @property
    def bracket_sizes(self) -> list[int]:
        """Number of rungs in each bracket."""
        return [len(bracket._rungs) for bracket in self._brackets]

    def assign(self, trial_id: str, bracket: int) -> None:
        """Put a trial into a bracket, in place of Ray's random draw."""
        self._trial_info[trial_id] = self._brackets[bracket]

    def record(self, trial_id: str, bracket: int, epoch: float, metrics: dict[str, float]) -> None:
        """Record one validation in the rungs of a bracket."""
        assert self._metric is not None
        assert self._metric_op is not None
        value = self._metric_op * metrics[self._metric]
        self._brackets[bracket].on_result(SimpleNamespace(trial_id=trial_id), epoch, value)

    def rename(self, bracket: int, old_id: str, new_id: str) -> None:
        """Move the recorded validations of a bracket from one trial id to another."""
        for _, recorded in self._brackets[bracket]._rungs:
            if old_id in recorded:
                recorded[new_id] = recorded.pop(old_id)


class ReplayableMedian:
    """Mixin for `MedianStoppingRule` that knows the validations of an earlier process and pauses no trial.

    Ray pauses a trial while there are too few others to compare it with. A paused trial loses its process, and a search
    with few concurrent trials then makes no progress.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/tune/schedulers/median_stopping_rule.py
    """

    _results: Any

    def record_all(self, key: Any, validations: Sequence[dict[str, float]]) -> None:
        """Record the validations of a trial under any key."""
        self._results[key] = list(validations)

    def rename(self, old_key: Any, new_key: Any) -> None:
        """Move the recorded validations from one key to another, if there are any."""
        if old_key in self._results:
            self._results[new_key] = self._results.pop(old_key)

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        from ray.tune.schedulers import TrialScheduler

        return TrialScheduler.CONTINUE


class ExploringPopulation:
    """Mixin for `PopulationBasedTraining` that asks `explore` for the config of a trial that copies another.

    Ray's `custom_explore_fn` gets the config of the donor alone, without the trial that takes over.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/tune/schedulers/pbt.py
    """

    def explore(self, trial: Any, donor: Any) -> dict[str, Any]:
        """Return the new config of `trial`, which takes over the checkpoint of `donor`."""
        raise NotImplementedError

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.explore(trial, trial_to_clone), {}


@cache
def torch_backend(before_start: Callable[[], None]) -> type[Backend]:
    """Return a backend for Ray Train that starts torch's process groups as its own does, after `before_start`.

    Ray's own has no such hook, although the environment of `init_process_group` must be set before it, and its
    controller imports torch, for seconds, before it starts the workers.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/torch/config.py
    """
    import ray
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend
    from ray.train.constants import DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S

    class TorchBackend(Backend):
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            size, address = len(worker_group), worker_group.execute_single(0, get_address_and_port)
            settings = (before_start, backend_config.backend, size, address, backend_config.timeout_s)
            ray.get([worker_group.execute_single_async(i, start_process_group, i, *settings) for i in range(size)])

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            ended = worker_group.execute_async(end_process_group, len(worker_group))
            with suppress(ray.exceptions.GetTimeoutError):
                ray.get(ended, timeout=DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)

    return TorchBackend


def start_process_group(
    rank: int, before_start: Callable[[], None], backend: str, size: int, address: tuple[str, int], timeout_s: int
) -> None:
    """Start torch's process group on a worker, as Ray's torch backend does."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    before_start()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
    _set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    _setup_torch_process_group(backend, rank, size, "env://", timeout_s)


def end_process_group(size: int) -> None:
    """End torch's process group on a worker, as Ray's torch backend does."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=size > 1)  # type: ignore[no-untyped-call]


def store_in(config: RunConfig, folder: str, state: str) -> None:
    """Make `folder` the experiment folder of a run of Ray Train, and keep Ray's own state in its subfolder `state`.

    Ray takes a checkpoint as it is only if it is stored in the experiment folder, which is always `storage_path/name`.
    But `name` must be new for each start, because Ray resumes by name, and the dashboard shows it.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/api/config.py
    """
    from ray.train.v2._internal.execution.storage import StorageContext

    from txclf.core import storage  # and pyarrow

    class Storage(StorageContext):
        @property
        def checkpoint_manager_snapshot_path(self) -> str:
            return f"{self.experiment_fs_path}/{state}/snapshot.json"

    filesystem, path = storage.resolve(folder)
    filesystem.create_dir(f"{path}/{state}", recursive=True)
    parent, _, name = path.rpartition("/")
    # Read-only: Ray writes no marker file into the folder, and copies no checkpoint there.
    config.__dict__["storage_context"] = Storage(parent, name, filesystem, read_only=True)  # a cached property


def delay_resizes(trainer: Any, may_resize: Callable[[], bool]) -> None:
    """Have an elastic trainer ask `may_resize` before it ends running workers to start another number.

    Ray Train ends them without notice and has no public hook for it. The controller calls `may_resize`, in its own
    process, about once a second until it returns True.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/api/data_parallel_trainer.py
    """
    start = trainer._initialize_and_run_controller

    def start_with_policy(**arguments: Any) -> Any:
        return start(**{**arguments, "scaling_policy": delayed_policy(trainer.scaling_config, may_resize)})

    trainer._initialize_and_run_controller = start_with_policy


def delayed_policy(scaling_config: Any, may_resize: Callable[[], bool]) -> ElasticScalingPolicy:
    """Return Ray Train's elastic policy, extended to hold a resize of running workers until `may_resize` is True.

    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/execution/scaling_policy/elastic.py
    """
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision

    class DelayedPolicy(ElasticScalingPolicy):
        due: ResizeDecision | None = None

        def make_decision_for_non_running_worker_group(self) -> Any:
            self.due = None
            return super().make_decision_for_non_running_worker_group()

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            if self.due is None:
                decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
                if not isinstance(decision, ResizeDecision):
                    return decision
                self.due = decision
            if not may_resize():
                return NoopDecision()
            decision, self.due = self.due, None
            return decision

    return DelayedPolicy(scaling_config)


def has_autoscaler(patience_s: int = 0) -> bool:
    """Return True if an autoscaler can start nodes for the cluster that this process is connected to.

    A monitor reports on clusters started by hand too, but names each node's type by the id of the node. On a new
    cluster it needs some seconds for its first report, for which `patience_s` waits.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/autoscaler/_private/monitor.py
    """
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2 import sdk, utils
    from ray.experimental.internal_kv import _internal_kv_get

    if utils.is_autoscaler_v2():
        cluster = sdk.get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = [*cluster.active_nodes, *cluster.idle_nodes] if int(cluster.stats.autoscaler_version or 0) else []
        types = {node.ray_node_type_name for node in nodes}
    else:
        report = None
        for _ in range(patience_s + 1):
            status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
            report = json.loads(status).get("autoscaler_report") if status else {}
            if report is not None or not patience_s:
                break
            time.sleep(1)
        types = set((report or {}).get("node_type_mapping", {}).values())
    # The nodes of the local provider are a fixed list of machines.
    return bool(types - {"", "local.cluster.node"} - {f"node_{node['NodeID']}" for node in ray.nodes()})  # type: ignore[no-untyped-call]


def preemption_deadline() -> float | None:
    """Return the wall-clock time at which a node of this worker's group is taken away.

    None: Ray gave no notice. Infinity: the time is unknown. The public `ray.train.get_preemption_info` waits for all
    workers, so a thread cannot call it.
    Source: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/execution/preemption.py
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return None
    return info.deadline_ms / 1000 if info.deadline_ms else math.inf


def hide_transformers_from_torchmetrics() -> None:
    """Keep torchmetrics from importing Transformers, which takes over a second and only BERTScore and CLIP need.

    torchmetrics asks for the version of Transformers when it is imported, and has no other switch. Without effect if it
    was imported before.
    Source: https://github.com/Lightning-AI/torchmetrics/blob/v1.9.0/src/torchmetrics/utilities/imports.py
    """
    from lightning_utilities.core.imports import RequirementCache

    check = RequirementCache._check_requirement
    if check.__module__ == __name__:
        return

    def check_requirement(self: RequirementCache) -> None:
        if (self.requirement or "").startswith("transformers>="):
            self.available, self.message = False, "txclf has hidden Transformers from torchmetrics"
        else:
            check(self)

    RequirementCache._check_requirement = check_requirement  # type: ignore[method-assign]


def load_scipy_signal_when_used() -> None:
    """Keep torchmetrics from importing `scipy.signal`, which takes a second, to see whether it has a `hamming`.

    A stand-in has one, and becomes the module when anything else of it is asked for. Without effect if either was
    imported before.
    Source: https://github.com/Lightning-AI/torchmetrics/blob/v1.9.0/src/torchmetrics/__init__.py
    """
    name = "scipy.signal"

    class StandIn(ModuleType):
        hamming = None

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__") and attribute not in (
                "__path__",
                "__all__",
            ):  # `inspect` looks at all modules
                raise AttributeError(attribute)
            if sys.modules.get(name) is self:
                del sys.modules[name]
            return getattr(importlib.import_module(name), attribute)

    if not {name, "torchmetrics"} & sys.modules.keys() and importlib.util.find_spec("scipy"):
        sys.modules[name] = StandIn(name)


def exclude_from_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Exclude parameters and buffers of a module, by name, from the collectives of `DistributedDataParallel`.

    The list is private until https://github.com/pytorch/pytorch/issues/43690 is closed.
    Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/nn/parallel/distributed.py
    """
    from torch.nn.parallel import DistributedDataParallel

    exclude: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    exclude(module, list(names))


def keep_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep a trainer from replacing the process's signal handlers while it fits.

    Lightning's SIGTERM handler ends the process before a checkpoint is saved, and no option of `Trainer` turns it off.
    Source: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/trainer/connectors/signal_connector.py
    """
    trainer._signal_connector.register_signal_handlers = _register_nothing  # type: ignore[method-assign]


def _register_nothing() -> None:
    pass


def is_rust_panic(error: BaseException) -> bool:
    """Return True for a panic of a Rust extension such as `tokenizers`.

    PyO3 derives its exception from `BaseException` and offers no module to import it from. Source:
    https://github.com/PyO3/pyo3/blob/v0.25.0/src/panic.rs
    """
    return type(error).__module__ == "pyo3_runtime" and type(error).__name__ == "PanicException"
