"""Serve a bundle over HTTP. The replicas of the model are a Ray Serve deployment; this process is the front end.

client ──HTTP──▶ front end (this process: FastAPI on uvicorn) ──▶ Ray Serve's router ──▶ replicas, one batch at a time

The front end holds the connections and a copy of each request. If a replica dies, the front end sends its requests to
another one, which is safe because a prediction changes nothing. There is one front end, so limits, metrics and the
graceful shutdown are exact. With `replicas: 0`, the default, the model runs in the front end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import ClusterError, ConfigError
from txclf.core.signals import stop_signals
from txclf.inference import bundle
from txclf.inference.load import load_model
from txclf.inference.occlusion import Row
from txclf.serving.app import PredictionService, Unavailable
from txclf.serving.batcher import Answers, Ask, DynamicBatcher, QueueFull
from txclf.serving.connections import guarded_protocol
from txclf.serving.middleware import Metrics
from txclf.serving.origins import HostPolicy, host_name, is_loopback
from txclf.serving.predictor import Predictor
from txclf.serving.schemas import example_rows
from txclf.serving.settings import Limits, Settings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

RETRIES = 5
"""Maximum number of times that a request is sent again after its replica died."""
WATCH_SECONDS = 1.0
"""Seconds between two counts of the replicas."""
DEPLOYMENT = "model"


@dataclass(frozen=True)
class Started:
    """Facts about a service that has started."""

    url: str
    text_columns: list[str]
    seconds: float
    """Seconds from the call of `serve` to the first answer."""


class Replica:
    """Ray Serve replica: a predictor in a process of its own."""

    def __init__(self, folder: str, threads: int, use_gpu: bool, max_batch_size: int) -> None:
        self.predictor = Predictor(folder, threads=threads, use_gpu=use_gpu, max_batch_size=max_batch_size)

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """Return the answers in the order of the rows."""
        return await self.predictor.answer(rows)


def serve(folder: str, settings: Settings, on_start: Callable[[Started], None]) -> bool:
    """Serve a bundle until SIGINT or SIGTERM, then refuse new requests and answer the open ones.

    Returns True if every open request was answered, False if a second SIGINT ended the service first, or a client did
    not read its answer in time.

    Raises `BundleError` if the folder is not a bundle, `ConfigError` if the port is in use, `ClusterError` if Ray has
    too few resources for the replicas.
    """
    start = time.monotonic()
    _allow_files(2 * settings.limits.connections)
    # A bundle that cannot answer fails here. A replica of this process loads it itself; on Ray that is late.
    metadata = bundle.read_metadata(folder) if settings.replicas == 0 else load_model(folder, "cpu").metadata
    folder = storage.absolute(folder)
    examples = example_rows(settings.examples, metadata.text_columns)
    names = frozenset(map(host_name, settings.allowed_hosts))
    metrics = Metrics()
    with stop_signals(max_collected=0) as signals, _listening_socket(settings) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def ready() -> None:
            on_start(Started(url, metadata.text_columns, time.monotonic() - start))

        model = _in_process(folder, settings) if settings.replicas == 0 else _on_ray(folder, settings, metrics)
        with model as (ask, count_replicas):
            service = PredictionService(
                name=os.path.basename(os.path.dirname(folder)) or folder,
                metadata=metadata,
                ask=ask,
                limits=settings.limits,
                metrics=metrics,
                token=settings.token,
                examples=examples,
                hosts=HostPolicy(is_loopback(host), names),
                is_healthy=lambda: metrics.running > 0,
            )
            app = service.build_app(lambda _: _watch_replicas(count_replicas, metrics))
            server = http_server(app, settings.limits)
            signals.collect_all()  # uvicorn handles them as a graceful shutdown, and raises them again after it
            return _run(server, listening, lambda: bool(signals.received), ready)


def _run(server: Any, listening: socket.socket, is_ended: Callable[[], bool], ready: Callable[[], None]) -> bool:
    """Serve until a signal. Returns True if every open request was answered."""

    async def main() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        server.should_exit |= is_ended()  # by a signal that came before uvicorn handled them
        if server.started and not server.should_exit:
            ready()
        await serving
        if server.force_exit:  # the open requests are cancelled now, which is no error
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(main())
    return bool(server.all_answered)


def http_server(app: Any, limits: Limits) -> Any:
    """Return the HTTP server of an application. `all_answered` is False after an end that left requests unanswered."""
    import uvicorn

    protocol: Any = guarded_protocol(limits)

    class Server(uvicorn.Server):
        all_answered = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            before = protocol.unread
            await super().shutdown(sockets)
            left = list(self.server_state.connections)
            for connection in left:
                connection.transport.abort()
            self.all_answered = not (self.force_exit or left or protocol.unread > before)

    config = uvicorn.Config(
        app,
        http=protocol,
        h11_max_incomplete_event_size=limits.head_bytes,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=math.ceil(limits.seconds) + 5,
    )
    return Server(config)


@contextmanager
def _in_process(folder: str, settings: Settings) -> Iterator[tuple[Ask, Callable[[], int]]]:
    """Load the model into this process; yield the function that asks it and one that counts replicas."""
    predictor = Predictor(
        folder,
        threads=settings.threads,
        use_gpu=settings.use_gpu,
        max_batch_size=settings.max_batch_size,
        max_queue=settings.max_queue,
    )
    yield predictor.answer, lambda: 1


@contextmanager
def _on_ray(folder: str, settings: Settings, metrics: Metrics) -> Iterator[tuple[Ask, Callable[[], int]]]:
    """Deploy the model on Ray Serve during the block; yield the function that asks it and one that counts replicas."""
    import ray

    from txclf import ray_cluster

    options = {
        "workers": settings.replicas,
        "cpus_per_worker": settings.cpus_per_replica,
        "gpus_per_worker": settings.gpus_per_replica,
        "address": settings.address,
    }
    compute = run_config.parse({"compute": options}, "options").compute
    # Otherwise Ray ends with this service.
    outlives = ray.is_initialized() or ray_cluster.cluster_address(settings.address) is not None
    with ray_cluster.connected(compute):
        from ray import serve as ray_serve

        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # it logs every change of every replica
        room = ray_cluster.room(compute)
        if room < settings.replicas and not ray_cluster.autoscales():
            raise _too_few_resources(settings, room)
        name = f"txclf-{uuid.uuid4().hex[:8]}"
        ray_serve.start(proxy_location="Disabled")
        application = _deployment(settings).bind(folder, settings.threads, settings.use_gpu, settings.max_batch_size)
        try:
            try:
                handle = ray_serve.run(application, name=name, route_prefix=None)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ClusterError(
                    f"`{folder}`: no replica could load the bundle: {reason.removesuffix('.')}. "
                    "The bundle has to be where every node of the cluster can read it."
                ) from None
            try:
                yield _batch_calls(_ask_replicas(handle, metrics), settings, metrics), lambda: _count_replicas(name)
            finally:
                with suppress(Exception):  # its thread reports loads to Ray, and would start another Ray after the end
                    handle.shutdown()  # type: ignore[no-untyped-call]
        finally:
            if outlives:
                with suppress(Exception):
                    ray_serve.delete(name)


def _too_few_resources(settings: Settings, max_replicas: int) -> ClusterError:
    """Return the error for a cluster that has room for fewer replicas than the service starts with."""
    each = f"{settings.cpus_per_replica:g} CPUs"
    if settings.use_gpu:
        each += f" and {settings.gpus_per_replica:g} GPUs"
    return ClusterError(
        f"--replicas {settings.replicas}: the Ray cluster has resources for {max_replicas} replicas of {each}. "
        "Lower --replicas, --cpus-per-replica or --gpus-per-replica, or add nodes."
    )


def _deployment(settings: Settings) -> Any:
    """Return the Ray Serve deployment of `Replica`, without its arguments."""
    from ray import serve as ray_serve

    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas > settings.replicas:
        autoscaling = {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "initial_replicas": settings.replicas,
            # Half a batch being computed and half a batch queued; more requests start another replica.
            "target_ongoing_requests": settings.max_batch_size,
        }
        scale = {"autoscaling_config": autoscaling}
    return ray_serve.deployment(
        Replica,
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queue,
        max_constructor_retry_count=3,
        graceful_shutdown_timeout_s=settings.limits.seconds + 5,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2,
        health_check_timeout_s=max(30.0, settings.limits.seconds),
        **scale,
    )


def _batch_calls(ask: Ask, settings: Settings, metrics: Metrics) -> Ask:
    """Return `ask` behind a batcher with two batches per replica, because a call costs Ray Serve milliseconds."""
    if settings.max_replicas > settings.replicas:
        return ask  # Ray Serve scales by the number of calls, so each request is one call; replicas make the batches
    batcher = DynamicBatcher(
        ask,
        settings.max_batch_size,
        max_queue=settings.max_queue,
        max_in_flight=lambda: 2 * max(1, metrics.running),
    )
    return batcher.answer


def _ask_replicas(handle: DeploymentHandle[Any], metrics: Metrics) -> Ask:
    """Return a function that sends rows to a replica, and to another one if the replica dies."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

    async def ask(rows: Sequence[Row]) -> Answers:
        for attempt in range(RETRIES + 1):
            response = handle.answer.remote(rows)
            try:
                answers: Answers = await response
                return answers
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except BackPressureError:
                raise QueueFull from None
            except (RayActorError, ReplicaUnavailableError):
                if attempt < RETRIES:
                    metrics.retries.inc()
                    await asyncio.sleep(0.05 * 2**attempt)
            except DeploymentUnavailableError as error:
                raise Unavailable(f"Ray Serve has no replica of the model: {error}. Restart the service.") from None
        raise Unavailable(f"{RETRIES + 1} replicas died with this request. Give the replicas more memory.") from None

    return ask


def _count_replicas(name: str) -> int:
    """Return the number of running replicas of an application."""
    from ray import serve as ray_serve

    application = ray_serve.status().applications.get(name)
    if application is None or DEPLOYMENT not in application.deployments:
        return 0
    states = application.deployments[DEPLOYMENT].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


@asynccontextmanager
async def _watch_replicas(count_replicas: Callable[[], int], metrics: Metrics) -> AsyncIterator[None]:
    """Count the replicas every `WATCH_SECONDS` during the block."""

    async def watch() -> None:
        while True:
            # Ray may be busy; the last count is kept until the next one succeeds.
            with suppress(Exception):
                metrics.count_replicas(await asyncio.to_thread(count_replicas))
            await asyncio.sleep(WATCH_SECONDS)

    metrics.count_replicas(await asyncio.to_thread(count_replicas))
    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def _listening_socket(settings: Settings) -> Iterator[socket.socket]:
    """Listen before the model is loaded, so that a port in use is reported at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {settings.host}: {reason}. Pass an address of this machine.") from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen()  # or another service could bind too; clients wait until the model is loaded
        except OSError as error:
            raise ConfigError(
                f"--host {settings.host} --port {settings.port}: {error.strerror or error}. "
                "Pass another port, or --port 0 for a free one."
            ) from None
        yield listening


def _allow_files(count: int) -> None:
    """Raise the soft limit of open files to at least `count` where the hard limit allows it; connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
