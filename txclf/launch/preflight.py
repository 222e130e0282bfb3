"""`txclf check`: checks of a run's data, storage, versions and resources on every node.

`train` and `tune` also check that all nodes share `storage` and have the same versions, before they start on a cluster
of several nodes.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

from txclf._version import __version__
from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, ConfigError, TxclfError
from txclf.data import corrections
from txclf.data.prepare import find_sources
from txclf.launch import local_workers
from txclf.training.precision import choose_precision, require_usable_gpus, uses_gpu

GIB = 2**30
MIN_DISK, MIN_SHM = 5.0, 1.0
"""Recommended minimum of free disk for temporary files and of /dev/shm on a node, in GiB."""
MAX_SKEW_S = 5.0
"""Maximum difference between the clocks of two nodes, in seconds."""


class Finding(NamedTuple):
    """One line of the result of `check`."""

    status: Literal["pass", "warn", "fail"]
    what: str
    found: str
    advice: str = ""


class Node(NamedTuple):
    """The report of a node about itself."""

    name: str
    versions: dict[str, str]
    cores: int
    gpus: list[str]
    memory: float
    disk: float
    shm: float
    """`memory`: total; `disk`: free for temporary files; `shm`: total of /dev/shm, NaN if there is none. All in GiB."""
    time: float
    bf16: str
    problems: list[str]
    """Paths that the node cannot read or write, each with the reason."""
    has_room: bool = True
    """True if a worker fits on the node."""
    gpus_of_ray: int = 0
    """GPUs that Ray has on the node."""


@contextmanager
def connected(compute: Compute | None, shared: str, *, trains: bool = False, searches: bool = False) -> Iterator[None]:
    """Connect to a Ray that has room for the workers, if there are any; all nodes must reach `shared`.

    `trains` tells what the workers do. A block that `searches` trains on Ray in any case.
    """
    if compute is None or not (compute.on_ray or searches):
        yield
        return
    from txclf import ray_cluster

    forked = local_workers.forked(compute, always=searches) if trains or searches else nullcontext()
    with forked, ray_cluster.connected(compute):
        if compute.on_ray:
            ray_cluster.require(compute)
        require_shared(shared)
        yield


def check(run: RunConfig) -> list[Finding]:
    """Return the findings about a run, most general first. Ray must be connected if the run uses it."""
    findings = _settings(run)
    if any(finding.status == "fail" for finding in findings):
        return findings
    paths = sorted({source.path for files in find_sources(run).values() for source in files})
    with Probe(run.storage) as probe:
        started = time.time()
        if run.compute.on_ray:
            nodes = _ask_all(probe.token, run.storage, paths, run.compute)
        else:
            nodes = [ask(probe.token, run.storage, paths, uses_gpu(run.compute))]
        skew = max((_skew(node.time, started, time.time()) for node in nodes), default=0.0)
        findings += _storage(nodes, run.storage, len(paths), probe.missing(nodes))
    if run.compute.on_ray:
        findings += [_request(run), _authentication()]
    findings += [_versions(nodes), *_machines(nodes, run.compute), _precision(run, nodes)]
    if len(nodes) > 1:
        late = skew > MAX_SKEW_S
        advice = "set the clocks by NTP: times in logs and attempts will not agree" if late else ""
        findings.append(Finding("warn" if late else "pass", "clocks", f"apart by up to {skew:.1f} s", advice))
    return findings


def require_shared(folder: str) -> None:
    """Check that all nodes of a cluster read and write a folder and have the same versions.

    Takes a fraction of a second; a single node is not checked. Raises `ClusterError` with the first problem.
    """
    if len(_alive()) < 2:
        return
    folder = storage.absolute(folder)
    with Probe(folder) as probe:
        nodes = _ask_all(probe.token, folder, [])
        found = [*_storage(nodes, folder, 0, probe.missing(nodes)), _versions(nodes)]
    for finding in found:
        if finding.status == "fail":
            raise ClusterError(f"{finding.what}: {finding.found}: {finding.advice} (`txclf check` shows the details)")


class Probe:
    """A file that exists in a folder during the block. Nodes that find it answer with files of their own."""

    def __init__(self, folder: str) -> None:
        self.folder, self.token = folder, uuid.uuid4().hex

    def __enter__(self) -> Probe:
        storage.write_bytes(storage.join(self.folder, f".probe-{self.token}"), self.token.encode())
        return self

    def __exit__(self, *error: object) -> None:
        for name in storage.list_folder(self.folder):
            if name.startswith(f".probe-{self.token}"):
                storage.remove_file(storage.join(self.folder, name))

    def missing(self, nodes: list[Node]) -> list[str]:
        """Return the nodes whose answer did not arrive."""
        names = storage.list_folder(self.folder)
        return [node.name for node in nodes if f".probe-{self.token}-{node.name}" not in names]


def ask(token: str, folder: str, paths: list[str], gpu: bool) -> Node:
    """Return the report of this machine. `gpu` says whether a worker gets a GPU."""
    import ray
    import torch

    name = ray.util.get_node_ip_address() if ray.is_initialized() else platform.node()  # type: ignore[no-untyped-call]
    problems = []
    try:
        if storage.read_bytes(storage.join(folder, f".probe-{token}")).decode() != token:
            problems.append(f"`{folder}`: not the same folder as on the driver")
        storage.write_bytes(storage.join(folder, f".probe-{token}-{name}"), b"")
    except (TxclfError, OSError) as error:
        problems.append(str(error))
    for path in paths:
        try:
            if not storage.exists(path):
                problems.append(f"`{path}`: not found")
        except (TxclfError, OSError) as error:
            problems.append(str(error))
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    precision, reason = choose_precision("auto", gpu and bool(gpus))
    return Node(
        name=name,
        versions={
            "Python": platform.python_version(),
            "Ray": ray.__version__,
            "torch": torch.__version__,
            "txclf": __version__,
        },
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpus=gpus,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB,
        disk=shutil.disk_usage(tempfile.gettempdir()).free / GIB,
        shm=shutil.disk_usage("/dev/shm").total / GIB if os.path.isdir("/dev/shm") else math.nan,
        time=time.time(),
        bf16=f"{precision}: {reason}",
        problems=problems,
    )


def _ask_all(token: str, folder: str, paths: list[str], compute: Compute | None = None) -> list[Node]:
    """Return the reports of all nodes of the cluster, for the workers of `compute`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from txclf import ray_cluster

    task: Any = ray.remote(num_cpus=0, max_retries=0)(ask)
    alive = [*_alive().values()]
    gpu, asked = compute is not None and uses_gpu(compute), []
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append(task.options(scheduling_strategy=there).remote(token, folder, paths, gpu))
    reports, deadline = [], time.monotonic() + 120
    for node, answer in zip(alive, asked, strict=True):
        try:
            report: Node = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            message = "a node of the cluster does not answer within two minutes. Check `ray status`."
            raise ClusterError(message) from None
        except ray.exceptions.RayTaskError as error:
            raise ClusterError(
                f"a node cannot run txclf: {error.cause!s}. Install the same version on each node."
            ) from None
        except ray.exceptions.RayError as error:
            if node["NodeID"] not in _alive():
                continue  # a spot node that was taken away
            raise ClusterError(f"a node died while it was asked: {error}. Check `ray status`.") from None
        has_room = compute is None or ray_cluster.fits(node["Resources"], compute)
        reports.append(report._replace(has_room=has_room, gpus_of_ray=int(node["Resources"].get("GPU", 0))))
    return reports


def _alive() -> dict[str, dict[str, Any]]:
    """Return the live nodes of the cluster by their id."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def _settings(run: RunConfig) -> list[Finding]:
    try:
        sources = find_sources(run)
        corrections.load(run, corrections.sources(run.data.corrections or ()))
        count = sum(len(files) for files in sources.values())
        return [Finding("pass", "run file", f"`{run.name}`, {count} data file(s) for {', '.join(sources)}")]
    except TxclfError as error:
        return [Finding("fail", "run file", str(error), "fix it first; nothing else was checked")]


def _storage(nodes: list[Node], folder: str, files: int, missing: list[str]) -> list[Finding]:
    blind = {node.name: node.problems for node in nodes if node.problems}
    for name in missing:
        blind.setdefault(name, [f"`{folder}`: files written by the node do not arrive on the driver"])
    if blind:
        name, problems = next(iter(blind.items()))
        found = f"{len(blind)} of {len(nodes)} node(s) fail, first {name}: {problems[0]}"
        advice = "set `storage` (and the data) to a path that every node mounts, or to a URI such as s3://bucket/runs"
        return [Finding("fail", "storage", found, advice)]
    data = f", {files} data file(s) readable" if files else ""
    return [Finding("pass", "storage", f"`{folder}` is read and written by {len(nodes)} node(s){data}")]


def _request(run: RunConfig) -> Finding:
    from txclf import ray_cluster

    compute = run.compute
    try:
        require_usable_gpus(compute)
        ray_cluster.require(compute)
    except ConfigError as error:
        return Finding("fail", "workers", str(error))
    except ClusterError as error:
        return Finding("fail", "workers", str(error), "lower `compute.workers` or add nodes")
    asked = f"{compute.max_workers} x {compute.cpus_per_worker:g} CPUs"
    asked += f" and {compute.gpus_per_worker:g} GPUs" if compute.gpus_per_worker else ""
    room = ray_cluster.room(compute)
    if room < compute.min_workers:
        return Finding("warn", "workers", f"{asked}: room for {room} now", "the run waits for the autoscaler")
    if room < compute.max_workers:
        return Finding("warn", "workers", f"{asked}: room for {room} now", "the run starts with these and grows")
    return Finding("pass", "workers", f"{asked}: the cluster has room for {room}")


def _authentication() -> Finding:
    from txclf import ray_cluster

    if os.environ.get("RAY_AUTH_MODE") == "token":
        return Finding("pass", "token", "Ray asks for a token")
    advice = "anyone who reaches the head can run code: set RAY_AUTH_MODE=token on every node (docs/ray/clusters.md)"
    address = ray_cluster.cluster_address(None)
    return Finding("warn", "token", "no token is asked for" + (f" at {address}" if address else ""), advice)


def _versions(nodes: list[Node]) -> Finding:
    kinds = {tuple(node.versions.items()): node.name for node in nodes}
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{what} {version}" for what, version in kind) for kind, name in kinds.items()
    )
    # Of PyTorch without the device, as in `2.13.0+cpu`: a head node needs no build for GPUs.
    if len({tuple(v.partition("+")[0] if what == "torch" else v for what, v in kind) for kind in kinds}) > 1:
        return Finding("fail", "versions", versions, "install the same versions on every node")
    return Finding("pass", "versions", versions if len(kinds) > 1 else versions.partition(": ")[2])


def _machines(nodes: list[Node], compute: Compute) -> list[Finding]:
    findings = []
    for node in nodes:
        gpus, advice = f"{len(node.gpus)} GPUs", []
        is_blind = compute.on_ray and compute.gpus_per_worker > 0 and node.gpus_of_ray > len(node.gpus)
        if is_blind:
            gpus = f"{node.gpus_of_ray} GPUs of which PyTorch can use {len(node.gpus)}"
            advice.append("install PyTorch for CUDA, or a driver that knows its CUDA version")
        found = f"{node.cores} cores, {gpus}, {node.memory:.0f} GiB memory, {node.disk:.0f} GiB disk free"
        if node.disk < MIN_DISK:
            advice.append("free disk space, or set TMPDIR to a larger disk")
        if node.shm < MIN_SHM:
            found += f", {node.shm:.1f} GiB /dev/shm"
            advice.append("enlarge /dev/shm (docker: --shm-size), which holds Ray's objects")
        status: Literal["pass", "warn", "fail"] = "fail" if is_blind else "warn" if advice else "pass"
        findings.append(Finding(status, f"node {node.name}", found, "; ".join(advice)))
    return findings


def _precision(run: RunConfig, nodes: list[Node]) -> Finding:
    kinds = sorted({node.bf16 for node in nodes if node.has_room})
    if run.train.precision == "fp16" and not uses_gpu(run.compute):
        advice = (
            "set `train.precision` to `auto`, `bf16` or `fp32`, or give the workers a GPU: `compute.gpus_per_worker`"
        )
        return Finding("fail", "precision", "fp16 needs a GPU", advice)
    if run.train.precision != "auto":
        return Finding("pass", "precision", f"{run.train.precision}, as the run file says")
    if not kinds:
        return Finding("warn", "precision", "no node has room for a worker", "set `train.precision`, or add nodes")
    if len(kinds) > 1:
        return Finding(
            "warn", "precision", "; ".join(kinds), "set `train.precision`, or the nodes use different precisions"
        )
    return Finding("pass", "precision", kinds[0])


def _skew(clock: float, before: float, after: float) -> float:
    """Return the minimum error of a clock in seconds, if it was read between two local times."""
    return max(0.0, before - clock, clock - after)
