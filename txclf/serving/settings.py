"""Settings of the service and limits of its requests, checked when they are made."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field

from txclf.core.errors import ConfigError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "watchfiles")
"""Packages of the extra `txclf[serve]`."""


def require_packages() -> None:
    """Raise `ConfigError` if a package of the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"`serve` needs the package `{missing[0]}`. Run `pip install 'txclf[serve]'`.")


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    body_bytes: int = 1 << 20
    """Bytes per body."""
    texts: int = 256
    """Rows per request."""
    characters: int = 100_000
    """Characters per row, over all text columns."""
    seconds: float = 30.0
    """Seconds from the first byte to the answer."""
    open_requests: int = 1024
    """Concurrent requests, including those still being read. Each holds up to `body_bytes` in memory."""
    connections: int = 1024
    """Open connections, idle ones included."""
    head_bytes: int = 16_384
    """Bytes of the request line and the headers."""
    idle_seconds: float = 75.0
    """Seconds that a connection stays open after a response."""
    explanations: int = 2
    """Concurrent `/explain` requests."""
    queued_explanations: int = 32
    """`/explain` requests that may wait for others; more are refused."""


@dataclass(frozen=True)
class Settings:
    """Settings of the service."""

    host: str = "127.0.0.1"
    port: int = 8000
    """TCP port; 0 selects a free one."""
    replicas: int = 0
    """Copies of the model on Ray; 0 runs the model in this process."""
    max_replicas: int = 0
    """Upper bound of autoscaling; 0 disables it."""
    cpus_per_replica: float = 1.0
    """CPUs per replica. The model computes with this number of threads, rounded up."""
    gpus_per_replica: float = 0.0
    """GPUs per replica; 0 computes on the CPU."""
    max_batch_size: int = 64
    """Rows per batch."""
    max_queue: int = 256
    """Requests that may wait for a replica, in addition to those that replicas hold."""
    address: str | None = None
    """Address of the Ray cluster; None starts a local one."""
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    """Bearer token that requests must carry; None accepts every request."""
    examples: tuple[str, ...] = ()
    """Texts that the page offers to try; JSON objects of the text columns if the model reads several."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of the service, in addition to loopback names."""

    def __post_init__(self) -> None:
        """Raise `ConfigError`, by the names of the command line, for settings that make no sense."""
        for option, value in (
            ("timeout", self.limits.seconds),
            ("cpus-per-replica", self.cpus_per_replica),
            ("gpus-per-replica", self.gpus_per_replica),
        ):
            if not math.isfinite(value):
                raise ConfigError(f"--{option} {value}: expected a finite number, such as 3600.")
        if self.replicas == 0 and (self.max_replicas or self.address):
            option = "max-replicas" if self.max_replicas else "address"
            raise ConfigError(f"--{option}: is for replicas on Ray. Pass --replicas N too.")
        if 0 < self.max_replicas < self.replicas:
            raise ConfigError(
                f"--max-replicas {self.max_replicas}: expected at least {self.replicas}, as --replicas. "
                "Pass a larger number."
            )
        if self.token is not None:
            require_token(self.token, "`token`")

    @property
    def threads(self) -> int:
        """CPU threads of the model."""
        return math.ceil(self.cpus_per_replica)

    @property
    def use_gpu(self) -> bool:
        """True if the model computes on a GPU."""
        return self.gpus_per_replica > 0

    @property
    def max_ongoing_requests(self) -> int:
        """Maximum number of calls that a replica holds: with one row per call, two batches."""
        return 2 * self.max_batch_size


def require_token(token: str, where: str) -> str:
    """Return a bearer token; raise `ConfigError`, which names the place, if a header cannot carry it."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected a token of printable ASCII characters without spaces. Set such a token.")
    return token
