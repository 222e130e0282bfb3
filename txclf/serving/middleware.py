"""What stands before the model on the way of a request: token, size, time, counts. Every refusal is JSON.

{"error": {"status": 413, "message": "the body has more than 1,048,576 bytes"}}
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PUBLIC_PATHS = ("/", "/healthz", "/docs", "/openapi.json", "/page/serve.js", "/page/serve.css")
"""Paths that need no token: they tell nothing of the model. A browser could not send one for a page."""
API_PATHS = ("/predict", "/explain")
SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """How much a request may ask for."""

    body_bytes: int = 1 << 20
    texts: int = 256
    """Rows in a request."""
    characters: int = 100_000
    """Of a row."""
    seconds: float = 30.0
    """From the first byte to the answer."""
    open_requests: int = 1024
    """At once, those that are still being read among them: each holds up to `body_bytes`."""


class Metrics:
    """What `GET /metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "txclf_serve_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "txclf_serve_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["path"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.open = Gauge("txclf_serve_open_requests", "Requests that wait for their answer.", registry=self.registry)
        self.texts = Counter("txclf_serve_texts", "Rows that were answered.", registry=self.registry)
        self.batch = Histogram(
            "txclf_serve_batch_texts",
            "Rows in the batch that a request was answered in.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "txclf_serve_model_seconds",
            "Seconds that the model took for the batch that a request was answered in.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.retries = Counter(
            "txclf_serve_retries",
            "Times that a request was sent again, its replica being gone.",
            registry=self.registry,
        )
        self.replicas = Gauge("txclf_serve_replicas", "Replicas of the model that run.", registry=self.registry)
        self.running = 0
        """Replicas, as counted last."""

    def count_replicas(self, running: int) -> None:
        self.running = running
        self.replicas.set(running)


class RequestMiddleware:
    """Middleware around the whole service."""

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token = None if token is None else token.encode()
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in (*PUBLIC_PATHS, *API_PATHS, "/model", "/metrics") else "other"
        start, status, whole = time.perf_counter(), 0, scope["method"] in ("GET", "HEAD")

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {name.lower() for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
                message["headers"] = [*message["headers"], *(one for one in extra if one[0] not in there)]
            await send(message)

        read = 0

        async def receiving() -> Message:
            nonlocal read, whole
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if read > self.limits.body_bytes:
                    raise HTTPException(413, self._too_large())
            return message

        headers = dict(scope["headers"])
        self.open += 1
        self.metrics.open.set(self.open)
        try:
            refusal = self._refusal(scope, headers)
            if refusal:
                await _answer(sending, *refusal)
                return
            try:
                async with asyncio.timeout(self.limits.seconds):
                    await self.app(scope, receiving, sending)
            except TimeoutError:
                if not status and whole:
                    await _answer(sending, 504, f"no answer within {self.limits.seconds:g} s: try again later")
                elif not status:
                    await _answer(sending, 408, f"the body did not come within {self.limits.seconds:g} s")
        finally:
            self.open -= 1
            self.metrics.open.set(self.open)
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[int, str, dict[str, str]] | None:
        """What can be refused before the body is read: status, message, headers."""
        if self.open > self.limits.open_requests:
            return (
                503,
                f"{self.limits.open_requests:,} requests are open already: try again later",
                {"retry-after": "1"},
            )
        if self.token is not None and scope["path"] not in PUBLIC_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # In constant time, so that a wrong token does not tell how much of it is right.
            if not hmac.compare_digest(given.strip(), self.token) or scheme.lower() != b"bearer":
                what = "the token is wrong" if given else "no token: send the header `Authorization: Bearer TOKEN`"
                return 401, what, {"www-authenticate": "Bearer"}
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return 413, self._too_large(), {"connection": "close"}
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and scope["path"] in API_PATHS and kind != b"application/json":
            # A page of another site can send a form or plain text here unasked, JSON it cannot.
            return 415, "expected JSON: send the header `Content-Type: application/json`", {}
        return None

    def _too_large(self) -> str:
        return f"the body has more than {self.limits.body_bytes:,} bytes: send fewer texts at once"


def error(status: int, message: str) -> bytes:
    """The body of a refusal."""
    return json.dumps({"error": {"status": status, "message": message}}, ensure_ascii=False).encode("utf-8", "replace")


async def _answer(send: Send, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
    body = error(status, message)
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
