"""`txclf serve`: a bundle behind HTTP. Replicas of the model are a deployment of Ray Serve; this process is the front.

client ──HTTP──▶ front (this process: FastAPI on uvicorn) ──▶ Ray Serve's router ──▶ replicas, a batch at a time

The front holds the connections and a copy of each request, so a replica may die: what it had is sent to another, which
is safe, for a prediction changes nothing. There is one front, so limits, counts and the clean end are exact. With
`replicas: 0` the model runs in the front's own process, without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, ConfigError
from txclf.inference import bundle
from txclf.serving.app import Unavailable, service
from txclf.serving.batcher import Answers, Ask, DynamicBatcher, QueueFull
from txclf.serving.middleware import Limits, Metrics
from txclf.serving.occlusion import Row
from txclf.serving.predictor import Predictor

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

RETRIES = 5
"""Times that a request is sent again after its replica died."""
WATCH_SECONDS = 1.0
"""Between two looks at the replicas."""
DEPLOYMENT = "model"


@dataclass(frozen=True)
class Settings:
    """How a bundle is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: one that is free."""
    replicas: int = 1
    """0: the model runs in this process."""
    max_replicas: int = 0
    """More than `replicas`: as many as the load asks for, up to this."""
    cpus_per_replica: float = 1.0
    """Of a replica; the threads it computes with are this, rounded up."""
    gpus_per_replica: float = 0.0
    """Of a replica; 0: it computes on the CPU."""
    max_batch_size: int = 64
    max_queue: int = 256
    """Requests that may wait for a replica, beside those that replicas hold."""
    address: str | None = None
    """Of a Ray cluster, else a local one is started."""
    limits: Limits = field(default_factory=Limits)
    token: str | None = None

    @property
    def threads(self) -> int:
        return math.ceil(self.cpus_per_replica)

    @property
    def ongoing(self) -> int:
        """Calls that a replica holds at most: of one request each, a batch in the model and the next one ready."""
        return 2 * self.max_batch_size


@dataclass(frozen=True)
class Started:
    """What is told when the service answers."""

    url: str
    text_columns: list[str]
    seconds: float


class Model:
    """A replica: a predictor in a process of its own."""

    def __init__(self, folder: str, threads: int, gpu: bool, max_batch_size: int) -> None:
        self.predictor = Predictor(folder, threads, gpu, max_batch_size)

    async def answer(self, rows: Sequence[Row]) -> Answers:
        return await self.predictor.answer(rows)


def serve(folder: str, settings: Settings, show: Callable[[Started], None]) -> bool:
    """Serves a bundle until SIGINT or SIGTERM; then takes no more requests and answers those it has.

    False when a second SIGINT would not wait for that.

    Raises `BundleError` for what is no bundle, `ConfigError` for a port that is taken, `ClusterError` when Ray has no
    room for the replicas.
    """
    started = time.monotonic()
    description, _ = bundle.read(folder, "classify", "multilabel", "seq2seq")  # all of it: is it whole?
    folder = storage.absolute(folder)
    metrics = Metrics()
    with _signals() as begin, _socket(settings) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def ready() -> None:
            show(Started(url, description.text_columns, time.monotonic() - started))

        where = _here(folder, settings) if settings.replicas == 0 else _on_ray(folder, settings, metrics)
        with where as (ask, running):
            app = service(
                os.path.basename(os.path.dirname(folder)) or folder,
                description,
                ask,
                settings.limits,
                metrics,
                settings.token,
                lambda: metrics.running > 0,
                lambda _: _watching(running, metrics),
            )
            begin()
            return _run(app, listening, settings, ready)


def _run(app: Any, listening: socket.socket, settings: Settings, ready: Callable[[], None]) -> bool:
    """Answers requests until a signal; returns when the last one is answered, False where it was not waited for."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(settings.limits.seconds) + 5,
    )
    server = uvicorn.Server(config)

    async def main() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await serving

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(main())
    return not server.force_exit


@contextmanager
def _here(folder: str, settings: Settings) -> Iterator[tuple[Ask, Callable[[], int]]]:
    """The model in this process."""
    predictor = Predictor(
        folder, settings.threads, settings.gpus_per_replica > 0, settings.max_batch_size, settings.max_queue
    )
    yield predictor.answer, lambda: 1


@contextmanager
def _on_ray(folder: str, settings: Settings, metrics: Metrics) -> Iterator[tuple[Ask, Callable[[], int]]]:
    """The model as a deployment of Ray Serve, for the time of the block."""
    from txclf import ray_cluster

    needs = Compute(
        workers=settings.replicas,
        cpus_per_worker=settings.cpus_per_replica,
        gpus_per_worker=settings.gpus_per_replica,
        address=settings.address,
    )
    with ray_cluster.connected(needs):
        from ray import serve as ray_serve

        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news of every replica
        room = ray_cluster.room(needs)
        if room < settings.replicas:
            each = f"{settings.cpus_per_replica:g} CPUs" + (
                f" and {settings.gpus_per_replica:g} GPUs" if settings.gpus_per_replica else ""
            )
            raise ClusterError(
                f"--replicas {settings.replicas} with {each} each: Ray's nodes have room for {room}: "
                f"lower --replicas, --cpus-per-replica or --gpus-per-replica, or add nodes"
            )
        joined = settings.address or os.environ.get("RAY_ADDRESS")
        name = f"txclf-{uuid.uuid4().hex[:8]}"
        ray_serve.start(proxy_location="Disabled")
        bound = _deployment(settings).bind(
            folder, settings.threads, settings.gpus_per_replica > 0, settings.max_batch_size
        )
        try:
            try:
                handle = ray_serve.run(bound, name=name, route_prefix=None)
            except RuntimeError as error:
                last = str(error).strip().splitlines()[-1]
                raise ClusterError(f"`{folder}`: no replica could load it on Ray: {last}") from None
            yield _gathering(_asking(handle, metrics), settings, metrics), lambda: _running(name)
        finally:
            # A Ray of our own ends as a whole; in a cluster that was there before, what is ours does.
            if joined:
                with suppress(Exception):
                    ray_serve.delete(name)


def _deployment(settings: Settings) -> Any:
    """The deployment of `Model`, unbound."""
    from ray import serve as ray_serve

    many: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas > settings.replicas:
        scaling = {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "initial_replicas": settings.replicas,
            # Half of a batch in the model and half of one waiting: more than that wants another replica.
            "target_ongoing_requests": settings.max_batch_size,
        }
        many = {"autoscaling_config": scaling}
    return ray_serve.deployment(
        Model,
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        max_ongoing_requests=settings.ongoing,
        max_queued_requests=settings.max_queue,
        max_constructor_retry_count=3,
        graceful_shutdown_timeout_s=settings.limits.seconds + 5,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2,
        health_check_timeout_s=max(30.0, settings.limits.seconds),
        **many,
    )


def _gathering(ask: Ask, settings: Settings, metrics: Metrics) -> Ask:
    """Sends what waits to a replica as one call, for a call costs Ray Serve milliseconds: one batch that is in the
    model, and the next one ready."""
    if settings.max_replicas > settings.replicas:
        return ask  # Ray Serve counts calls to know the load, so each request is one; a replica makes the batches
    return DynamicBatcher(ask, settings.max_batch_size, settings.max_queue, lambda: 2 * max(1, metrics.running)).answer


def _asking(handle: DeploymentHandle[Any], metrics: Metrics) -> Ask:
    """Sends rows to a replica, and to another one where it died with them."""
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
                raise Unavailable(f"Ray Serve has no replica of the model: {error}") from None
        raise Unavailable(f"{RETRIES + 1} replicas died with this request: the model may need more memory") from None

    return ask


def _running(name: str) -> int:
    """Replicas that run."""
    from ray import serve as ray_serve

    application = ray_serve.status().applications.get(name)
    if application is None or DEPLOYMENT not in application.deployments:
        return 0
    states = application.deployments[DEPLOYMENT].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


@asynccontextmanager
async def _watching(running: Callable[[], int], metrics: Metrics) -> AsyncIterator[None]:
    """Counts the replicas again and again, for as long as the service answers."""

    async def watch() -> None:
        while True:
            # Ray may be busy: what was counted last stands meanwhile.
            with suppress(Exception):
                metrics.count_replicas(await asyncio.to_thread(running))
            await asyncio.sleep(WATCH_SECONDS)

    metrics.count_replicas(await asyncio.to_thread(running))
    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def _socket(settings: Settings) -> Iterator[socket.socket]:
    """Listens before anything is loaded, so that a port that is taken is told at once."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {settings.host}: {error.strerror or error}") from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
        except OSError as error:
            raise ConfigError(
                f"--host {settings.host} --port {settings.port}: {error.strerror or error}: choose another, "
                "or --port 0 for one that is free"
            ) from None
        yield listening


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM end the block at once until it says that it serves: from then on uvicorn takes them as the
    wish to end well, and sends them again when it is done."""
    serving: list[bool] = []
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        asked.append(number)
        if not serving:
            raise SystemExit(128 + number)

    def begin() -> None:
        if asked:  # what was raised may have been lost: Python drops an exception in some of its own callbacks
            raise SystemExit(128 + asked[0])
        serving.append(True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield begin
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
