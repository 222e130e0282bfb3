"""Ray: joining or starting it, and refusing at once what it could never give."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data  # sets its loggers up when imported, before they are quieted below

from txclf.config.sections import Compute
from txclf.core.errors import ClusterError

# Read by the worker processes too. Each can be overridden from outside.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # A stage of Ray Data that can never run raises after two minutes instead of thirty.
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def connected(compute: Compute) -> Iterator[None]:
    """Ray, for the time of the block: the one already connected, the cluster at `compute.address` or `RAY_ADDRESS`,
    or a local one of all this machine's cores that ends with the block.

    Raises `ClusterError` when the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = compute.address or os.environ.get("RAY_ADDRESS")
    if address and address not in ("auto", "local"):
        _require_answer(address)
    # Ray puts its own handler over SIGTERM's, which would end the driver without a checkpoint.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=os.environ.get("RAY_TMPDIR") or os.path.join(tempfile.gettempdir(), "ray"),
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"Ray at `{address or 'local'}` cannot be joined: {error}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raises `ClusterError` when nothing listens at `host:port`, which Ray would wait for until it dies."""
    host, _, port = address.split("://")[-1].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"Ray at `{address}` cannot be joined: {error}: expected `auto` or `host:port`") from None


def require(compute: Compute) -> None:
    """Raises `ClusterError`, with the arithmetic, when the cluster could never hold the workers.

    Reading and training ask for no CPU beside those of the workers, so they may take all there are.
    """
    workers = compute.min_workers
    word = f"`compute.workers` ({workers})" if not compute.elastic else f"the fewest of `compute.workers` ({workers})"
    nodes, wanted = _nodes(), _wanted(compute)
    keys = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
    for resource, each in wanted.items():
        total = sum(node.get(resource, 0.0) for node in nodes)
        if workers * each > total + 1e-9:
            raise ClusterError(
                f"{word} x `compute.{keys[resource]}` ({each:g}) = {workers * each:g} {resource}s, "
                f"but Ray has {total:g}: lower one of them or add nodes"
            )
    fit = room(compute)
    if workers > fit:
        sizes = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ClusterError(
            f"{word} with {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs each: the nodes have room for {fit} "
            f"({sizes}), and a worker does not stretch over nodes"
        )


def room(compute: Compute) -> int:
    """How many workers the cluster has room for, were it empty."""
    return sum(_room(node, _wanted(compute)) for node in _nodes())


def waiting(compute: Compute) -> str:
    """What a run without workers waits for, with the arithmetic."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    needs = f"{compute.min_workers * compute.cpus_per_worker:g} CPUs"
    has = f"{free.get('CPU', 0):g} of {there.get('CPU', 0):g} CPUs"
    if compute.gpus_per_worker:
        needs += f" and {compute.min_workers * compute.gpus_per_worker:g} GPUs"
        has += f" and {free.get('GPU', 0):g} of {there.get('GPU', 0):g} GPUs"
    return f"waiting for workers: {compute.min_workers} of them take {needs}, and Ray has {has} free"


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that lives."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _wanted(compute: Compute) -> dict[str, float]:
    """What a worker takes."""
    return {"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker}


def _room(node: dict[str, float], wanted: dict[str, float]) -> int:
    """How many workers fit on a node."""
    return min(int((node.get(name, 0.0) + 1e-9) / each) for name, each in wanted.items() if each)


def data_budget(compute: Compute) -> int:
    """Bytes of training data that go to memory: half the smallest node's object store, by the workers it has room for.

    Ray sizes the store by the node's memory, and each worker holds a copy beside the one in the store.
    """
    rooms = [(_room(node, _wanted(compute)), node.get("object_store_memory", 0.0)) for node in _nodes()]
    return min(int(store / 2 / min(compute.max_workers, room)) for room, store in rooms if room)
