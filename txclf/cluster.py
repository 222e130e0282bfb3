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

from txclf.config import Compute
from txclf.errors import ClusterError

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
    """Raises `ClusterError`, with the arithmetic, when the cluster could never hold the workers."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for resource, each, key in (
        ("CPU", compute.cpus_per_worker, "cpus_per_worker"),
        ("GPU", compute.gpus_per_worker, "gpus_per_worker"),
    ):
        wanted, total = compute.workers * each, there.get(resource, 0.0)
        if wanted > total + 1e-9:
            raise ClusterError(
                f"`compute.workers` ({compute.workers}) x `compute.{key}` ({each:g}) = {wanted:g} {resource}s, "
                f"but Ray has {total:g}: lower one of them or add nodes"
            )
