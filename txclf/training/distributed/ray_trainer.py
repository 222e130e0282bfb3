"""Training on Ray: Ray Train holds the workers, Ray Data's blocks their rows, and the driver watches.

What goes wrong ends in one of two ways. A worker or node that dies, hangs or stands still: all workers begin again
from the last committed checkpoint, up to `compute.max_failures` times. What would only come back (a damaged shard, a
full disk, a loss that is not finite): the run ends with that error.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch
from ray import PlacementGroupID
from ray.train import (
    ControllerError,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    get_context,
    get_dataset_shard,
)
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from txclf import ray_cluster
from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, TxclfError
from txclf.data import shards
from txclf.data.batches import Rows
from txclf.training.distributed.gloo import GlooTorchConfig
from txclf.training.distributed.monitor import StalledWorker
from txclf.training.distributed.prometheus import PrometheusMonitor
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.progress import Heartbeat, Interrupted, Progress

SCRATCH, HELD = ".ray", "placement_group"
"""Where Ray Train keeps its state in the run folder while it runs, and the file there that names what it holds."""

HEARTBEAT_S = 1.0
WAITING_S = 45.0
"""Seconds without any worker, start-up included, after which the driver says what it waits for."""


def fit(job: WorkerConfig, streams: bool, report: Callable[[Progress], bool]) -> dict[str, Any]:
    """Trains on the Ray this process is connected to; what rank 0 did, as plain data.

    `streams`: the rows go to each node's disk, not to the object store.

    Raises `Interrupted` when `report` asked for a stop, the workers' own `TxclfError`, or `ClusterError` when they
    failed more often than `compute.max_failures`.
    """
    # On the driver's node, or the loss of another node would take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(PrometheusMonitor).options(num_cpus=0, scheduling_strategy=here).remote(job.config.name)
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=_run_trainer, args=(job, streams, board, outcome), daemon=True)
    thread.start()
    shown, notes = Progress(), list[str]()
    lost: StalledWorker | None = None
    met = time.monotonic()
    while thread.is_alive():
        thread.join(timeout=0.3)
        latest, workers = ray.get(board.latest.remote())
        shown = latest or shown
        if workers:
            met = time.monotonic()
        elif time.monotonic() - met > WAITING_S:
            notes.append(ray_cluster.waiting(job.config.compute))
            met = math.inf  # said once
        shown.notes = notes
        if report(shown):
            board.ask_stop.remote()
            if not workers:  # nobody who could answer: what is not started yet has nothing to save
                raise Interrupted
        found = ray.get(board.lost.remote(job.config.train.stall_timeout_s))
        if found:
            lost = found
            notes.append(f"{lost.message}: it is ended, and all workers begin again")
            ray.kill(lost.worker)
    failure = ray.get(board.failed.remote())
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise _told(outcome["error"], lost, job.config.compute)
    last = ray.get(board.latest.remote())[0] or shown
    last.notes = notes
    report(last)
    if outcome["result"] is None:
        raise Interrupted
    return dict(outcome["result"])


def _run_trainer(job: WorkerConfig, streams: bool, board: Any, outcome: dict[str, Any]) -> None:
    """Runs Ray Train to its end; leaves the result of rank 0 or the error in `outcome`."""
    compute = job.config.compute
    # Ray's own state goes to a fresh folder each time: it resumes by name, and checkpoints of ours know better.
    release(job.config.run_folder)
    scratch = storage.join(job.config.run_folder, SCRATCH)
    if compute.elastic:
        # After a loss Ray first tries with as many workers as before; by default it waits a minute for the lost node.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "25")
    try:
        resources = {"CPU": compute.cpus_per_worker}
        if compute.gpus_per_worker:
            resources["GPU"] = compute.gpus_per_worker
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]
            # As bytes: the controller would import Lightning to look at it, seconds before it starts the workers.
            train_loop_config={"job": pickle.dumps(job), "board": board, "streams": streams},
            torch_config=GlooTorchConfig(timeout_s=int(2 * job.config.train.stall_timeout_s) + 1),
            scaling_config=ScalingConfig(  # type: ignore[call-arg]
                num_workers=(compute.min_workers, compute.max_workers) if compute.elastic else compute.max_workers,  # type: ignore[arg-type]
                use_gpu=compute.gpus_per_worker > 0,
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=5.0,
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=scratch,
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=compute.max_failures,
                    # Workers that could not be started: half an hour of waiting for room, or a minute or two of dying
                    # at once.
                    controller_failure_limit=30,
                ),
            ),
            datasets={} if streams else {split: _dataset(job, split) for split in ("train", "valid")},
            # Each rank picks its rows of each global batch itself, so none of Ray's splitting drops or repeats any.
            dataset_config=DataConfig(datasets_to_split=[]),
        )
        outcome["result"] = trainer.fit().return_value  # type: ignore[attr-defined]
    except BaseException as error:
        outcome["error"] = error
    finally:
        storage.remove_folder(scratch)


def release(run_folder: str) -> None:
    """Gives back what workers of a run still hold whose driver was killed: Ray keeps their resources for ever else."""
    path = storage.join(run_folder, SCRATCH, HELD)
    if storage.exists(path):
        held = PlacementGroupID(bytes.fromhex(storage.read_bytes(path).decode()))
        with suppress(Exception):  # of a cluster that is gone
            ray.util.remove_placement_group(PlacementGroup(held))
        storage.remove_folder(storage.join(run_folder, SCRATCH))


def _told(error: BaseException, lost: StalledWorker | None, compute: Compute) -> BaseException:
    """What to tell the user of an error of Ray Train: the error of ours in it, or that workers died too often."""
    known = _cause(error, TxclfError)
    if known:
        return known
    if lost:
        return ClusterError(f"{lost.message}; that was failure {compute.max_failures + 1} (`compute.max_failures`)")
    if isinstance(error, ControllerError):
        reason = str(error.controller_failure).strip().splitlines()[-1]
        return ClusterError(f"Ray could not start the workers: {reason}; {ray_cluster.waiting(compute)}")
    died = _cause(error, ray.exceptions.RayError)
    if isinstance(died, ray.exceptions.RayActorError | ray.exceptions.NodeDiedError | ray.exceptions.OutOfMemoryError):
        return ClusterError(
            f"workers died {compute.max_failures + 1} times (`compute.max_failures`): killed, out of memory, or with "
            "their node. The checkpoints are kept: go on with --resume"
        )
    return error


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The error of a kind that Ray's errors are wrapped around."""
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


def _dataset(job: WorkerConfig, split: str) -> Any:
    """The rows of a split in the object store, in prepared order: one copy for all the workers of a node.

    Read by tasks that ask for no CPU: blocks that are lost with their node are read again while workers hold all CPUs.
    """
    read = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(shards.read_shard)
    most = int(ray.cluster_resources().get("CPU", 1)) + 1  # type: ignore[no-untyped-call]
    blocks: list[Any] = []
    running: list[Any] = []
    for shard in job.manifest().splits[split].shards:
        if len(running) == most:
            _, running = ray.wait(running, fetch_local=False)
        blocks.append(read.remote(job.prepared, shard, job.columns))
        running.append(blocks[-1])
    return ray.data.from_arrow_refs(blocks)


def _work(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker of Ray Train runs; None when it was interrupted."""
    from txclf.training import worker  # and Lightning: not in the driver

    job, board = pickle.loads(settings["job"]), settings["board"]
    context = get_context()
    torch.set_num_threads(max(1, int(job.config.compute.cpus_per_worker)))
    rank, world_size = context.get_world_rank(), context.get_world_size()
    pulse = Heartbeat()
    asked: list[Any] = []

    def report(progress: Progress) -> bool:
        """Posts without waiting; the answer to the post before says whether to stop."""
        stop = bool(ray.get(asked.pop())) if asked else False
        asked.append(board.post.remote(progress))
        return stop

    def rows(split: str) -> Rows:
        pulse.beat("reading data", 0)
        if settings["streams"]:
            barrier = torch.distributed.barrier if world_size > 1 else lambda: None
            return worker.streamed_rows(job, split, pulse, context.get_local_rank() == 0, barrier)
        tables = []
        for table in get_dataset_shard(split).iter_batches(batch_size=None, batch_format="pyarrow"):
            pulse.beat("reading data", 0)
            tables.append(table)
        return job.rows(tables)  # type: ignore[no-any-return]

    held = ray.util.get_current_placement_group()
    if rank == 0 and held:
        path = storage.join(job.config.run_folder, SCRATCH, HELD)
        storage.write_bytes(path, held.id.hex().encode())
    if ray.get(board.failed.remote()) is not None:
        return None  # Ray Train starts workers again after any error, and this one would only come back
    try:
        with _heartbeat(board, rank, world_size, pulse):
            return worker.fit(job, rows, report, _place(job.config.compute, rank, world_size, pulse))
    except Interrupted:
        return None
    except TxclfError as error:
        ray.get(board.fail.remote(error))
        raise


def _place(compute: Compute, rank: int, world_size: int, pulse: Heartbeat) -> DistributedContext:
    from ray.train.lightning import RayLightningEnvironment  # imports slowly

    from txclf.training.distributed import strategies

    if world_size == 1:
        return DistributedContext(pulse=pulse)
    environment = RayLightningEnvironment()  # type: ignore[no-untyped-call]
    return DistributedContext(rank, world_size, strategies.strategy(compute), (environment,), pulse)


@contextmanager
def _heartbeat(board: Any, rank: int, world_size: int, pulse: Heartbeat) -> Iterator[None]:
    """Tells the board every second what this worker does, from a thread, for as long as the block runs."""
    ray.get(board.join.remote(rank, world_size, ray.get_runtime_context().current_actor))
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(HEARTBEAT_S):
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                pulse.gpu_bytes = torch.cuda.max_memory_reserved()
            board.beat.remote(rank, pulse)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        board.leave.remote()
