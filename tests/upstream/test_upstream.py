"""Each private API of Ray, Lightning and torch that `txclf.upstream` uses behaves as txclf needs.

A failure after an upgrade names the package and its version: adapt `txclf/upstream/`, or pin the package.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import ray
import torch
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import FixedLength
from torch import nn

import txclf
from tests.helpers.upgrades import upgrade
from txclf import upstream

OWNERS = {"ray", "pytorch_lightning", "lightning", "lightning_fabric", "torch"}


@dataclass(frozen=True)
class SimpleTrial:
    """A trial with the one attribute that Ray's median rule reads."""

    trial_id: str


class Brackets(upstream.ReplayableBrackets, ASHAScheduler):
    """ASHA with the mixin alone."""


class Medians(upstream.ReplayableMedian, MedianStoppingRule):
    """The median stopping rule with the mixin alone."""


class Explorer(upstream.ExploringPopulation, PopulationBasedTraining):
    """Population-based training with the mixin alone."""

    def explore(self, trial: Any, donor: Any) -> dict[str, Any]:
        return {"trial": trial, "donor": donor}


def test_upgrade_failure_names_package_and_version() -> None:
    message = rf"ray {metadata.version('ray')} changed.*AttributeError: gone"
    with pytest.raises(pytest.fail.Exception, match=message), upgrade("ray"):
        raise AttributeError("gone")


def test_asha_brackets_are_assigned_and_have_rungs() -> None:
    with upgrade("ray"):
        scheduler = Brackets("epoch", "valid_loss", "min", max_t=9, grace_period=1, reduction_factor=3, brackets=2)
        assert scheduler.bracket_sizes == [3, 2]
        scheduler.assign("a", 1)
        assert scheduler._trial_info["a"] is scheduler._brackets[1]


def test_asha_recorded_validation_stops_a_worse_trial() -> None:
    with upgrade("ray"):
        scheduler = Brackets("epoch", "valid_loss", "min", max_t=9, grace_period=1, reduction_factor=3)
        scheduler.record("before-0", 0, 1.0, {"valid_loss": 0.1})
        scheduler.rename(0, "before-0", "a")
        recorded = [ids for _, ids in scheduler._brackets[0]._rungs]
        assert [list(ids) for ids in recorded] == [[], [], ["a"]]
        scheduler.assign("b", 0)
        trial: Any = SimpleNamespace(trial_id="b")
        assert scheduler.on_trial_result(None, trial, {"epoch": 1.0, "valid_loss": 0.9}) == "STOP"  # type: ignore[arg-type]


def test_median_rule_pauses_no_trial_and_counts_recorded_ones() -> None:
    with upgrade("ray"):
        rule = Medians("epoch", "valid_loss", "min", grace_period=0, min_samples_required=2)
        waiting = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
        trial, bad = SimpleTrial("b"), {"epoch": 1.0, "valid_loss": 0.9}
        decide: Any = rule.on_trial_result
        plain: Any = MedianStoppingRule("epoch", "valid_loss", "min", grace_period=0).on_trial_result
        # Without the mixin Ray still pauses; if not, that part of the workaround can go.
        assert plain(waiting, trial, bad) == "PAUSE"
        assert decide(waiting, trial, bad) == "CONTINUE"
        for number in range(2):
            rule.record_all(f"before-{number}", [{"epoch": 1.0, "valid_loss": 0.1}])
        rule.rename("before-0", "c")
        assert decide(waiting, trial, bad) == "STOP"


def test_population_exploit_asks_explore_for_the_config() -> None:
    with upgrade("ray"):
        assert "self._get_new_config(trial, trial_to_clone)" in inspect.getsource(PopulationBasedTraining._exploit)
        population = Explorer("epoch", "valid_loss", "min", custom_explore_fn=lambda config: config)
        assert population._get_new_config("a", "b") == ({"trial": "a", "donor": "b"}, {})


def test_torch_backend_does_what_that_of_ray_does_after_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    with upgrade("ray"):
        from ray.train.torch import config

        calls: list[Any] = []
        monkeypatch.setattr(ray, "get", lambda found, timeout=None: found)
        monkeypatch.setattr(config, "_set_torch_distributed_env_vars", lambda: calls.append(os.environ["MASTER_PORT"]))
        monkeypatch.setattr(torch.distributed, "init_process_group", lambda **settings: calls.append(settings))
        monkeypatch.setattr(config, "_shutdown_torch", lambda destroy_process_group: calls.append("end"))
        monkeypatch.setenv("MASTER_ADDR", "")
        monkeypatch.setenv("MASTER_PORT", "")
        backend: Any = upstream.torch_backend(hook := partial(calls.append, "hook"))()
        backend.on_start(Group(), SimpleNamespace(backend="gloo", timeout_s=9))
        assert calls[0] == "hook"
        assert int(calls[1]) > 0
        assert calls[2] == {
            "backend": "gloo",
            "init_method": "env://",
            "rank": 0,
            "world_size": 1,
            "timeout": timedelta(seconds=9),
        }
        backend.on_shutdown(Group(), None)
        assert calls[3:] == ["end"]
        assert upstream.torch_backend(hook) is upstream.torch_backend(hook)


class Group:
    """A worker group of one worker in this process."""

    def __len__(self) -> int:
        return 1

    def execute_single(self, index: int, call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    execute_single_async = execute_single

    def execute_async(self, call: Any, *arguments: Any) -> Any:
        return [call(*arguments)]


def test_scipy_signal_is_loaded_when_it_is_used() -> None:
    code = """
import sys
from txclf import upstream
upstream.load_scipy_signal_when_used()
import torchmetrics
assert not any(name.startswith("scipy.signal.") for name in sys.modules)
import scipy.signal
from scipy.signal import windows
import scipy.signal.windows
assert scipy.signal.convolve([1, 2], [1]).tolist() == [1, 2]
assert windows.hann(3).tolist() == [0, 1, 0]
assert sys.modules["scipy.signal"].__spec__.name == "scipy.signal"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_store_in_separates_the_experiment_folder_from_the_name(tmp_path: Path) -> None:
    with upgrade("ray"):
        from ray import cloudpickle
        from ray.train import Checkpoint, RunConfig
        from ray.train.v2._internal.execution.context import is_managed_checkpoint

        folder = tmp_path / "run"
        config = RunConfig(name="run-2", storage_path=str(folder))
        upstream.store_in(config, str(folder), ".ray")
        assert [path.name for path in folder.iterdir()] == [".ray"]
        sent: Any = cloudpickle.loads(cloudpickle.dumps(config))  # type: ignore[no-untyped-call]
        assert sent.name == "run-2"
        assert sent.storage_context.experiment_fs_path == str(folder)
        assert sent.storage_context.checkpoint_manager_snapshot_path == f"{folder}/.ray/snapshot.json"
        assert is_managed_checkpoint(sent.storage_context, Checkpoint(f"{folder}/checkpoints/step-1"))
        # Without it Ray refuses the checkpoint; if not, the workaround can go.
        plain: Any = RunConfig(name="run-2", storage_path=str(folder))
        assert not is_managed_checkpoint(plain.storage_context, Checkpoint(f"{folder}/checkpoints/step-1"))


def test_elastic_policy_holds_a_resize_until_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with upgrade("ray"):
        from ray.train import ScalingConfig
        from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision

        resize = ResizeDecision(2, {"CPU": 1})
        scaling = ScalingConfig(num_workers=(1, 2))  # type: ignore[arg-type]
        monkeypatch.setattr(ElasticScalingPolicy, "make_decision_for_running_worker_group", lambda *status: resize)
        allowed = iter([False, False, True, False])
        policy = upstream.delayed_policy(scaling, lambda: next(allowed))
        status: Any = None
        decisions = [policy.make_decision_for_running_worker_group(status, status) for _ in range(4)]
        assert decisions == [NoopDecision(), NoopDecision(), resize, NoopDecision()]
        monkeypatch.setattr(ElasticScalingPolicy, "make_decision_for_non_running_worker_group", lambda self: resize)
        assert (
            policy.make_decision_for_non_running_worker_group() is resize
        )  # the workers are gone: nothing to wait for


def test_trainer_passes_the_delayed_policy_to_its_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    with upgrade("ray"):
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        started: dict[str, Any] = {}
        monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda self, **given: started.update(given))
        trainer = TorchTrainer(keep, scaling_config=ScalingConfig(num_workers=(1, 2)))  # type: ignore[arg-type]
        upstream.delay_resizes(trainer, lambda: True)
        trainer._initialize_and_run_controller(scaling_policy="Ray's", failure_policy="Ray's")  # type: ignore[attr-defined]
        assert type(started["scaling_policy"]).__name__ == "DelayedPolicy"
        assert started["failure_policy"] == "Ray's"


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["ray.head.default", "gpu"], True),
        (["node_f00d"], False),  # started by hand
        (["local.cluster.node"], False),  # a fixed list of machines
    ],
)
def test_autoscaler_is_known_by_the_node_types_that_it_reports(
    monkeypatch: pytest.MonkeyPatch, types: list[str], expected: bool
) -> None:
    with upgrade("ray"):
        import ray
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray.autoscaler._private.autoscaler import AutoscalerSummary
        from ray.autoscaler._private.util import format_readonly_node_type
        from ray.autoscaler.v2 import utils
        from ray.autoscaler.v2.schema import ClusterStatus, NodeInfo, Stats
        from ray.experimental import internal_kv

        assert format_readonly_node_type("f00d") == "node_f00d"
        assert "node_type_mapping" in {field.name for field in fields(AutoscalerSummary)}
        assert {"active_nodes", "idle_nodes", "stats"} <= {field.name for field in fields(ClusterStatus)}
        assert "ray_node_type_name" in {field.name for field in fields(NodeInfo)}
        assert "autoscaler_version" in {field.name for field in fields(Stats)}
        mapping = {str(number): name for number, name in enumerate(types)}
        status = json.dumps({"autoscaler_report": {"node_type_mapping": mapping}}).encode()
        monkeypatch.setattr(internal_kv, "_internal_kv_get", {DEBUG_AUTOSCALING_STATUS: status}.get)
        monkeypatch.setattr(utils, "is_autoscaler_v2", lambda: False)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "f00d"}])
        assert upstream.has_autoscaler() is expected
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: None)  # no monitor at all
        assert upstream.has_autoscaler() is False


@pytest.mark.parametrize(("deadline_ms", "expected"), [(90_500, 90.5), (None, math.inf)])
def test_preemption_deadline_is_that_of_the_train_context(
    monkeypatch: pytest.MonkeyPatch, deadline_ms: int | None, expected: float
) -> None:
    with upgrade("ray"):
        from ray.train.v2._internal.execution import context
        from ray.train.v2._internal.execution.preemption import PreemptionContext
        from ray.train.v2.api.preemption import PreemptionInfo

        assert "preemption_context" in {field.name for field in fields(context.TrainContext)}
        notice = PreemptionContext()
        monkeypatch.setattr(context, "_train_context", SimpleNamespace(preemption_context=notice))
        assert upstream.preemption_deadline() is None
        notice.preemption_info = PreemptionInfo(deadline_ms, {"node": [1]})
        assert upstream.preemption_deadline() == expected


def keep() -> None:
    """Stand for the hook of a worker."""


def test_ddp_leaves_out_excluded_parameters(tmp_path: Path) -> None:
    with upgrade("torch"):
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel

        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
            upstream.exclude_from_ddp(module, ["0.weight"])
            assert DistributedDataParallel(module).parameters_to_ignore == {"0.weight"}
        finally:
            distributed.destroy_process_group()


class OneStep(pl.LightningModule):
    """A model that notes the SIGTERM handler while it fits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.handler = nn.Linear(1, 1), None

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.handler = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]
        return self.layer(batch).sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", [True, False])
def test_lightning_fit_keeps_the_signal_handlers_if_asked(kept: bool) -> None:
    with upgrade("pytorch-lightning"):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if kept:
            upstream.keep_signal_handlers(trainer)
        module, before = OneStep(), signal.getsignal(signal.SIGTERM)
        trainer.fit(module, torch.ones(1, 1, 1))
        # Without the workaround Lightning still replaces the handler; if not, the workaround can go.
        assert (module.handler == before) is kept


def test_cpu_features_are_known_to_torch() -> None:
    with upgrade("torch"):
        # Read by `training.precision`.
        assert isinstance(torch.cpu._is_amx_tile_supported(), bool)
        assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)


def test_no_other_module_imports_private_names_of_these_packages() -> None:
    root = Path(txclf.__file__).parent
    private = [
        f"{path.relative_to(root)}: {name}"
        for path in root.rglob("*.py")
        if path.parent.name != "upstream"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
        if name.split(".")[0] in OWNERS and any(part.startswith("_") for part in name.split("."))
    ]
    assert not private


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_torchmetrics_does_not_import_transformers() -> None:
    """Transformers is installed, so torchmetrics would import it."""
    for first, found in (("", "True"), ("import txclf.metrics; ", "False")):
        code = f"import sys; {first}import torchmetrics; print('transformers' in sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert result.stdout.strip() == found


def test_is_rust_panic_is_true_for_a_panic_of_tokenizers_only() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0}))
    tokenizer.pre_tokenizer = FixedLength(0)
    with pytest.raises(BaseException, match="chunk size must be non-zero") as caught:
        tokenizer.encode("a")
    assert not isinstance(caught.value, Exception)
    assert upstream.is_rust_panic(caught.value)
    assert not upstream.is_rust_panic(KeyboardInterrupt())
