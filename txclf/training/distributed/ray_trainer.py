"""Training on Ray: Ray Train holds the workers, Ray Data streams their rows, and the driver monitors them.

A fault ends in one of two ways. If a worker or node dies, hangs or stalls, all workers restart from the last committed
checkpoint, up to `compute.max_failures` times. If the fault would only come back (a damaged shard, a full disk, a loss
that is not finite), the run ends with that error.
"""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray import PlacementGroupID
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    get_context,
)
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup

from txclf import ray_cluster, upstream
from txclf.artifacts import attempts
from txclf.config.run_config import RunConfig as TrainingRun
from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, TxclfError
from txclf.training.distributed import gloo, ray_data
from txclf.training.distributed.gloo import GlooTorchConfig
from txclf.training.distributed.monitor import StalledWorker
from txclf.training.distributed.prometheus import PrometheusMonitor
from txclf.training.distributed.ray_data import RayWindows, WindowsDataConfig
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.progress import Heartbeat, Interrupted, Progress, Requests
from txclf.training.run_stats import RunStats
from txclf.upstream import local_ray

SCRATCH, HELD = ".ray", "placement_group"
"""Folder of Ray Train's state in the run folder while it runs, and the file there that names its placement group."""

POLL_S = 0.3
"""Seconds between two looks of the driver at the workers."""
HEARTBEAT_S = 1.0
"""Seconds between two heartbeats of a worker."""
WAITING_S = 45.0
"""Seconds without any worker, start-up included, after which the driver reports what it waits for."""
STOP_S = 20.0
"""Seconds that the driver waits for Ray Train to end after the workers have stopped."""
AUTOSCALER_START_S = "1200"
"""Seconds that Ray waits at a time for the nodes of an autoscaler."""
RESIZE_PATIENCE_S = 300.0
"""Seconds that a resize waits for a checkpoint of the workers."""
GROUP_START_S = "25"
"""Seconds that an elastic run waits for a lost node before it restarts with fewer workers."""


@dataclass
class Outcome:
    """End of Ray Train, as its thread leaves it for the driver."""

    stats: RunStats | None = None
    """Result of rank 0; None if it was interrupted."""
    error: BaseException | None = None


@dataclass
class PauseForResize:
    """Has the workers save a checkpoint and pause before a resize. The controller of Ray Train calls it repeatedly."""

    monitor: Any
    first: float = -math.inf
    """Monotonic time of the first call for this resize."""
    last: float = -math.inf

    def __call__(self) -> bool:
        """Return True if the workers are paused, or if they take too long."""
        now = time.monotonic()
        if now - self.last > 30:  # an earlier resize, which a failure has made pointless
            self.first = now
        self.last = now
        return ray.get(self.monitor.pause.remote()) or now - self.first > RESIZE_PATIENCE_S


def fit(config: WorkerConfig, report: Callable[[Progress], bool], notes: Sequence[str] = ()) -> RunStats:
    """Train on the Ray that this process is connected to and return the measurements of rank 0.

    `notes` are the messages reported so far.

    Raises `Interrupted` if `report` asked for a stop, the workers' own `TxclfError`, or `ClusterError` if they failed
    more often than `compute.max_failures`.
    """
    compute, stall_timeout = config.run.compute, config.run.train.stall_timeout_s
    monitor = ray_cluster.actor_here(PrometheusMonitor, config.run.name)
    outcome = Outcome()
    thread = threading.Thread(target=_run_trainer, args=(config, monitor, outcome), daemon=True)
    thread.start()
    shown, notes = Progress(), list(notes)
    stalled: StalledWorker | None = None
    last_heard, is_waiting, preempted_at = time.monotonic(), False, None
    if ray_cluster.room(compute) < compute.min_workers:
        last_heard -= WAITING_S  # an autoscaler must start nodes first: report at once what the run waits for
    while thread.is_alive():
        thread.join(timeout=POLL_S)
        latest, workers, heard = ray.get(monitor.latest.remote())
        shown = latest or shown
        if heard:
            last_heard, is_waiting, stalled = time.monotonic(), False, None  # the stall of the group before
        elif time.monotonic() - last_heard > WAITING_S and not is_waiting:
            notes.append(ray_cluster.waiting(compute))
            is_waiting = True
        notes += [note for note in shown.notes if note not in notes]
        if shown.preempted_at not in (None, preempted_at):
            preempted_at = shown.preempted_at
            notes.append(_preemption_note(preempted_at))
        shown.notes = notes
        if report(shown):
            monitor.request_stop.remote()
            if not workers or is_waiting:
                # Either they have just saved and left, and Ray Train ends in a moment, or there is nothing to save.
                thread.join(timeout=STOP_S if latest else 0)
                if thread.is_alive():
                    ray.kill(monitor)  # or workers that start later would train, without the lease of the run
                    raise Interrupted
        found = ray.get(monitor.stalled.remote(stall_timeout))
        if found:
            stalled = found
            notes.append(f"{stalled.message}. The worker is ended and all workers restart.")
            ray.kill(stalled.worker)
    failure = ray.get(monitor.failed.remote())
    if failure is not None:
        raise failure
    if outcome.error is not None:
        raise _explain(outcome.error, stalled, compute)
    last = ray.get(monitor.latest.remote())[0] or shown
    last.notes = notes
    report(last)
    if outcome.stats is None:
        raise Interrupted
    return outcome.stats


def _run_trainer(config: WorkerConfig, monitor: Any, outcome: Outcome) -> None:
    """Run Ray Train to its end and leave the result of rank 0 or the error in `outcome`."""
    compute = config.run.compute
    scratch = storage.join(config.run.run_folder, SCRATCH)
    try:
        release(config.run.run_folder)
        storage.remove_folder(scratch)  # Ray would resume from its own state, and our checkpoints know better
        trainer = TorchTrainer(
            # As bytes: the controller would import Lightning to look at it, seconds before it starts the workers.
            partial(_work, {"config": pickle.dumps(config), "monitor": monitor}),  # type: ignore[arg-type]
            train_loop_config=config.run.model_dump(mode="json"),  # for the API of the dashboard
            torch_config=GlooTorchConfig(  # type: ignore[arg-type]
                "nccl" if compute.gpus_per_worker else "gloo", timeout_s=int(2 * config.run.train.stall_timeout_s) + 1
            ),
            scaling_config=_scaling(compute),
            run_config=_run_config(config.run),
            datasets=ray_data.datasets(config),
            dataset_config=WindowsDataConfig(config),
        )
        if local_ray.is_joined() and not compute.elastic:
            local_ray.start_trainer_lightly(trainer)
        if compute.elastic:
            upstream.delay_resizes(trainer, PauseForResize(monitor))
        with ray_cluster.environment(_patience(compute)):
            outcome.stats = trainer.fit().return_value  # type: ignore[attr-defined]
    except BaseException as error:
        outcome.error = error
    finally:
        with suppress(TxclfError):  # the next attempt removes it, and the outcome counts
            storage.remove_folder(scratch)


def _patience(compute: Compute) -> dict[str, str]:
    """Return the environment with which Ray Train waits for workers to start."""
    seconds = None
    if compute.elastic:
        # After a loss Ray first retries with as many workers as before, by default for a minute.
        seconds = GROUP_START_S
    elif ray_cluster.autoscales():
        # It may take many minutes to start a node, also for one that is lost later, and each timeout counts towards the
        # failure limit.
        seconds = AUTOSCALER_START_S
    return {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": seconds} if seconds else {}


def _run_config(run: TrainingRun) -> RunConfig:
    """Return the name, the storage and the failure limits of a run, for Ray Train."""
    config = RunConfig(
        name=f"{run.name}-{len(attempts.read(run.run_folder)) + 1}",
        storage_path=run.run_folder,
        failure_config=FailureConfig(  # type: ignore[call-arg]
            max_failures=run.compute.max_failures,
            # Workers that could not be started: half an hour without room, or one or two minutes of crashes.
            controller_failure_limit=30,
        ),
    )
    upstream.store_in(config, run.run_folder, SCRATCH)
    return config


def _scaling(compute: Compute) -> ScalingConfig:
    resources = {"CPU": compute.cpus_per_worker}
    if compute.gpus_per_worker:
        resources["GPU"] = compute.gpus_per_worker
    return ScalingConfig(  # type: ignore[call-arg]
        num_workers=(compute.min_workers, compute.max_workers) if compute.elastic else compute.max_workers,  # type: ignore[arg-type]
        use_gpu=compute.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=5.0,
    )


def _preemption_note(at: float) -> str:
    when = f" at {time.strftime('%H:%M:%S', time.localtime(at))}" if math.isfinite(at) else ""
    return f"Ray takes a node of the workers away{when}. They save a checkpoint now and restart without the node."


def release(run_folder: str) -> None:
    """Free the resources of a run whose driver was killed, because Ray keeps its placement group for ever."""
    path = storage.join(run_folder, SCRATCH, HELD)
    if storage.exists(path):
        held = PlacementGroupID(bytes.fromhex(storage.read_bytes(path).decode()))
        with suppress(Exception):  # the cluster may be gone
            ray.util.remove_placement_group(PlacementGroup(held))
        storage.remove_folder(storage.join(run_folder, SCRATCH))


def _explain(error: BaseException, stalled: StalledWorker | None, compute: Compute) -> BaseException:
    """Return the error to report for an error of Ray Train: ours if there is one in it, or a `ClusterError`."""
    known = _cause(error, TxclfError)
    if known:
        return known
    count = compute.max_failures + 1
    if isinstance(error, ControllerError):  # also after a stall
        reason = str(error.controller_failure).strip().splitlines()[-1]
        return ClusterError(f"Ray could not start the workers: {reason}; {ray_cluster.waiting(compute)}")
    if stalled:
        return ClusterError(f"{stalled.message}. That was failure {count} (`compute.max_failures`).")
    died = _cause(error, ray.exceptions.RayError)
    if isinstance(died, ray.exceptions.RayActorError | ray.exceptions.NodeDiedError | ray.exceptions.OutOfMemoryError):
        return ClusterError(
            f"workers died {count} times (`compute.max_failures`): killed, out of memory, or with "
            "their node. The checkpoints are kept: pass --resume to continue."
        )
    reasons = {rank: gloo.reason(failure) for rank, failure in getattr(error, "worker_failures", {}).items()}
    if reasons and all(reasons.values()):  # else one of the ranks has the cause, and the others only lost it
        rank = min(reasons)
        return ClusterError(
            f"rank {rank}: lost contact with another worker ({reasons[rank]}). That was failure {count} "
            "(`compute.max_failures`). A worker hangs, or the network between the nodes is slow or broken. Check the "
            "nodes, or raise `train.stall_timeout_s`, then pass --resume."
        )
    return error


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind that Ray's errors are wrapped around, or None."""
    if isinstance(error, kind):
        return error
    failures = getattr(error, "worker_failures", None) or {}
    wrapped = [getattr(error, name, None) for name in ("cause", "health_check_failure", "__cause__")]
    for inner in [*failures.values(), *wrapped]:
        if isinstance(inner, BaseException) and inner is not error:
            found = _cause(inner, kind)
            if found:
                return found
    return None


def _work(settings: dict[str, Any], shown: dict[str, Any]) -> RunStats | None:
    """Run one worker of Ray Train; return None if it was interrupted."""
    config: WorkerConfig = pickle.loads(settings["config"])
    monitor, context = settings["monitor"], get_context()
    torch.set_num_threads(max(1, int(config.run.compute.cpus_per_worker)))
    rank, world_size = context.get_world_rank(), context.get_world_size()
    heartbeat, requests = Heartbeat(), Requests()
    pending: list[Any] = []

    def report(progress: Progress) -> bool:
        """Report without waiting; the answer to the report before, or to the last heartbeat, says whether to stop."""
        progress.preempted_at = requests.preempted_at
        stop = requests.stop or (bool(ray.get(pending.pop())) if pending else False)
        pending[:] = [monitor.report.remote(progress)]
        return stop

    held = ray.util.get_current_placement_group()
    if rank == 0 and held:
        path = storage.join(config.run.run_folder, SCRATCH, HELD)
        storage.write_bytes(path, held.id.hex().encode())
    if ray.get(monitor.failed.remote()) is not None:
        return None  # Ray Train restarts workers after any error, and this one would only come back
    try:
        windows = RayWindows(config)  # begins to read, and meanwhile:
        from txclf.training import worker  # and Lightning: not in the driver

        with _heartbeats(monitor, rank, world_size, heartbeat, requests):
            place = _context(config.run, rank, world_size, heartbeat, requests)
            return worker.fit(config, windows, report, place)
    except Interrupted:
        return None
    except TxclfError as error:
        ray.get(monitor.fail.remote(error))
        raise


def _context(
    run: TrainingRun, rank: int, world_size: int, heartbeat: Heartbeat, requests: Requests
) -> DistributedContext:
    from ray.train.lightning import RayLightningEnvironment, prepare_trainer  # imports slowly

    from txclf.training.distributed import ray_report, strategies

    callbacks = (ray_report.RayReport(run.run_folder),)
    if world_size == 1:
        return DistributedContext(heartbeat=heartbeat, requests=requests, callbacks=callbacks)
    environment = RayLightningEnvironment()  # type: ignore[no-untyped-call]
    return DistributedContext(
        rank,
        world_size,
        strategies.strategy(run.compute),
        (environment,),
        heartbeat,
        requests,
        callbacks,
        prepare_trainer,
    )


def _gpu_bytes() -> int:
    """Return the GPU memory that this process has reserved at most.

    A new thread is on the first of the visible GPUs, and the worker may train on another.
    """
    return max(torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count()))


@contextmanager
def _heartbeats(monitor: Any, rank: int, world_size: int, heartbeat: Heartbeat, requests: Requests) -> Iterator[None]:
    """Send heartbeats and receive requests every second in a thread, for as long as the block runs."""
    ray.get(monitor.join.remote(rank, world_size, ray.get_runtime_context().current_actor))
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(HEARTBEAT_S):
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                heartbeat.gpu_bytes = _gpu_bytes()
            answer = monitor.beat.remote(rank, heartbeat)
            if rank == 0:
                requests.preempted_at = upstream.preemption_deadline()
                requests.stop, requests.pause = ray.get(answer)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    leaving: int | None = None  # all of them: the group ends with the first worker that fails
    try:
        yield
        leaving = rank
    finally:
        ended.set()
        monitor.leave.remote(leaving)
