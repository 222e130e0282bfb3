"""Connection to Ray, and checks that the cluster can hold the workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data  # sets its loggers up when imported, before they are quieted below
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from txclf import upstream
from txclf.config.sections import Compute
from txclf.core import cpus
from txclf.core.errors import ClusterError
from txclf.upstream import local_ray

# Worker processes read them too. A value in the environment takes precedence.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Seconds between two looks for nodes that are about to be taken away.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONWARNINGS": "ignore",
    # By default Ray's workers have a niceness of 15: next to one other busy program a worker gets 3 % of a CPU.
    "RAY_worker_niceness": "0",
}
CLUSTER_SETTINGS = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
"""Further ones on a cluster: its dashboard shows the state of runs."""
LOCAL_SETTINGS = {
    # Each of these is a process. A local Ray has no dashboard, and nobody takes its node away.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # Ray Train takes one report of the workers each time: a short run would end seconds after its last step.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # `ray.init` would wait for workers that Ray starts early, for ever if one of them needs more than a minute or dies.
    "RAY_prestart_worker_first_driver": "0",
}
"""Further ones on a Ray that `connected` starts; all its processes inherit them."""


@contextmanager
def connected(compute: Compute) -> Iterator[None]:
    """Connect to Ray for the duration of the block.

    An existing connection is used. Otherwise the block joins the cluster at `compute.address` or `RAY_ADDRESS`, or
    starts a local Ray with all cores of this machine. Raises `ClusterError` if the address does not answer.
    """
    if ray.is_initialized():
        with environment({} if local_ray.is_joined() else CLUSTER_SETTINGS):
            yield
        return
    address = cluster_address(compute.address)
    with environment({**SETTINGS, **(CLUSTER_SETTINGS if address else LOCAL_SETTINGS)}):
        _join(address)
        try:
            yield
        finally:
            ray.shutdown()


def cluster_address(address: str | None) -> str | None:
    """Return the address of the cluster to join, by default that of `RAY_ADDRESS`; None for a local Ray."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Set the variables that the environment lacks, for the duration of the block."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _join(address: str | None) -> None:
    """Join a cluster or start a local Ray."""
    is_verbose = logging.getLogger("txclf").isEnabledFor(logging.INFO)  # with --verbose
    log: dict[str, Any] = {"log_to_driver": is_verbose, "logging_level": logging.INFO if is_verbose else logging.ERROR}
    for name in ("ray.data", "ray.train", "ray.tune") if not is_verbose else ():
        logging.getLogger(name).setLevel(logging.ERROR)
    if address and address != "auto":
        _require_answer(address)
    # Ray replaces the handler of SIGTERM, and its own would end the driver without a checkpoint.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **log)
        else:
            local_ray.init(
                address="local",
                num_cpus=cpus.available(),
                include_dashboard=False,
                **log,
                _temp_dir=os.environ.get("RAY_TMPDIR") or os.path.join(tempfile.gettempdir(), "ray"),
            )
    except Exception as error:  # a bare `Exception`, if its processes take more than half a minute to start
        reason = str(error).rstrip(".")
        raise ClusterError(
            f"Ray at `{address}` cannot be joined: {reason}. Check `compute.address` and `RAY_ADDRESS`."
            if address
            else f"Ray does not start on this machine: {reason}. Check `RAY_TMPDIR`, and whether the machine is busy."
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _require_answer(address: str) -> None:
    """Raise `ClusterError` if nothing listens at `host:port`, because Ray would wait for it and then crash."""
    host, _, port = address.split("://")[-1].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"Ray at `{address}` cannot be joined: {error}. Set `compute.address` to `auto` or `host:port`."
        ) from None


def require(compute: Compute) -> None:
    """Raise `ClusterError`, with the numbers, if the cluster can never hold the workers.

    The workers may take all CPUs, because reading and training need no others. Where an autoscaler starts nodes, the
    nodes of now prove nothing: the workers wait, and Ray asks the autoscaler for their resources.
    """
    problem = _shortage(compute)
    if problem and not autoscales():
        raise ClusterError(problem)


def unused_gpus(compute: Compute) -> str | None:
    """Say that the cluster has GPUs that the workers do not take; None if they do, or if it has none."""
    total = sum(node.get("GPU", 0.0) for node in _nodes())
    if compute.gpus_per_worker or not total:
        return None
    return f"Ray has {total:g} GPU(s), of which the workers take none. Set the GPUs per worker to 1 to use them."


def autoscales() -> bool:
    """Return True if the cluster has an autoscaler, which starts nodes when a run waits for them."""
    return not local_ray.is_joined() and upstream.has_autoscaler(patience_s=15)


def _shortage(compute: Compute) -> str:
    """Describe why the nodes of now cannot hold the workers; empty if they can."""
    workers = compute.min_workers
    what = f"the minimum of `compute.workers` ({workers})" if compute.elastic else f"`compute.workers` ({workers})"
    nodes, needed = _nodes(), _resources_per_worker(compute)
    keys = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
    for resource, each in needed.items():
        total = sum(node.get(resource, 0.0) for node in nodes)
        if workers * each > total + 1e-9:
            return (
                f"{what} x `compute.{keys[resource]}` ({each:g}) = {workers * each:g} {resource}s, but Ray has "
                f"{total:g}. Lower one of them, or add nodes."
            )
    fit = room(compute)
    if workers <= fit:
        return ""
    sizes = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return (
        f"{what} with {needed['CPU']:g} CPUs and {needed['GPU']:g} GPUs each: the nodes have room for {fit} "
        f"({sizes}). Lower one of them, or add nodes; a worker must fit on one node."
    )


def room(compute: Compute) -> int:
    """Return the number of workers that fit on the cluster if nothing else runs there."""
    return sum(_room(node, _resources_per_worker(compute)) for node in _nodes())


def fits(node: dict[str, float], compute: Compute) -> bool:
    """Return True if a worker fits on a node with these resources if nothing else runs there."""
    return _room(node, _resources_per_worker(compute)) > 0


def num_readers() -> int:
    """Return the number of tasks without a CPU that may read at the same time: two per node.

    Ray starts such tasks without bound, because they need no free resources. Each is a process.
    """
    return 2 * max(1, len(_nodes()))


def actor_here(kind: type, *arguments: Any) -> Any:
    """Start an actor without CPUs on the driver's node, and return its handle.

    Ray would start it on any node, and the loss of that one would take it along.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote(*arguments)


def waiting(compute: Compute) -> str:
    """Describe the resources that a run without workers waits for."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    needs = f"{compute.min_workers * compute.cpus_per_worker:g} CPUs"
    has = f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} CPUs"
    if compute.gpus_per_worker:
        needs += f" and {compute.min_workers * compute.gpus_per_worker:g} GPUs"
        has += f" and {free.get('GPU', 0):g} of {total.get('GPU', 0):g} GPUs"
    asked = "; the autoscaler is asked for nodes (`ray status` lists those that it starts)" if autoscales() else ""
    return f"waiting for workers: {compute.min_workers} of them need {needs}, and Ray has {has} free{asked}"


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _resources_per_worker(compute: Compute) -> dict[str, float]:
    """Return the CPUs and GPUs of a worker."""
    return {"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker}


def _room(node: dict[str, float], needed: dict[str, float]) -> int:
    """Return the number of workers that fit on a node."""
    return min(int((node.get(name, 0.0) + 1e-9) / each) for name, each in needed.items() if each)
