"""Middleware around the HTTP service: hosts, token, size and time limits, metrics. Every error is JSON.

{"error": {"status": 413, "message": "the body has more than 1,048,576 bytes. Send fewer texts per request."}}
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from txclf.serving.origins import HostPolicy
from txclf.serving.settings import Limits

PUBLIC_PATHS = ("/", "/healthz", "/docs", "/openapi.json", "/page/serve.js", "/page/serve.css")
"""Paths that need no token: they reveal nothing about the model, and a browser cannot send a token for a page."""
API_PATHS = ("/predict", "/explain")
"""Paths whose requests carry a JSON body."""
SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Metrics:
    """Metrics that `GET /metrics` returns."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "txclf_serve_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "txclf_serve_request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["path"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.open = Gauge("txclf_serve_open_requests", "Requests without a response yet.", registry=self.registry)
        self.texts = Counter("txclf_serve_texts", "Rows predicted.", registry=self.registry)
        self.batch = Histogram(
            "txclf_serve_batch_texts",
            "Rows in the batch of a request.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "txclf_serve_model_seconds",
            "Seconds that the model took for the batch of a request.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.retries = Counter(
            "txclf_serve_retries",
            "Requests sent again after their replica died.",
            registry=self.registry,
        )
        self.replicas = Gauge("txclf_serve_replicas", "Running replicas of the model.", registry=self.registry)
        self.running = 0
        """Running replicas at the last count."""

    def count_replicas(self, running: int) -> None:
        """Record the number of running replicas."""
        self.running = running
        self.replicas.set(running)


class RequestMiddleware:
    """ASGI middleware that enforces hosts, token and limits, adds security headers and counts requests."""

    def __init__(
        self, app: ASGIApp, limits: Limits, token: str | None, metrics: Metrics, hosts: HostPolicy | None = None
    ) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.hosts = hosts or HostPolicy()
        self.token = None if token is None else token.encode()
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in (*PUBLIC_PATHS, *API_PATHS, "/model", "/metrics") else "other"
        start = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self.limits)
        self.open += 1
        self.metrics.open.set(self.open)
        try:
            await self._answer(scope, exchange)
            await exchange.finish()
        finally:
            self.open -= 1
            self.metrics.open.set(self.open)
            self.metrics.requests.labels(path, str(exchange.status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        """Answer a request within the time limit. Every exception becomes a response."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                refusal = self._refusal(scope)
                if refusal:
                    await exchange.send_error(*refusal)
                else:
                    await self.app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not exchange.status:
                await exchange.send_timeout()
        except Exception as error:
            if exchange.status:
                raise  # the server closes the connection, because the response is incomplete
            logging.getLogger("txclf").error("request %s failed", exchange.id, exc_info=error)
            await exchange.send_error(500, f"the service failed. Look for request {exchange.id} in its log.")

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Return status, message and headers of the error that is clear before the body is read, or None."""
        headers = dict(scope["headers"])
        if self.open > self.limits.open_requests:
            message = f"{self.limits.open_requests:,} requests are open already. Retry in a second."
            return 503, message, {"retry-after": "1"}
        problem = self.hosts.refusal(scope["headers"])
        if problem:
            return 403, problem, {}
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self.limits.head_bytes:
            return 431, head_too_large(self.limits), {}
        if self.token is not None and scope["path"] not in PUBLIC_PATHS:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            # Compared in constant time, so that the response time reveals nothing about the token.
            if not hmac.compare_digest(token.strip(), self.token) or scheme.lower() != b"bearer":
                problem = "the token is wrong" if token else "no token"
                message = f"{problem}. Send the header `Authorization: Bearer TOKEN`."
                return 401, message, {"www-authenticate": "Bearer"}
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > self.limits.body_bytes):
            return 413, _too_large(self.limits), {}
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and scope["path"] in API_PATHS and kind != b"application/json":
            # A page of another site can post a form or plain text without a preflight, but not JSON.
            return 415, "the body is not declared as JSON. Send the header `Content-Type: application/json`.", {}
        return None


class _Exchange:
    """One request and its response: counts the bytes of the body, remembers the status, adds headers.

    A response that precedes the end of the body ends the connection. The rest of the body is read first, because a
    connection that is closed with unread bytes is reset, and the client could not read the response.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        headers = dict(scope["headers"])
        self.id = uuid.uuid4().hex[:16]
        """Id of the request, in the header `X-Request-Id` of the response and in the log."""
        self.status = 0
        """Status of the response; 0 before it starts."""
        self._receive = receive
        self._send = send
        self._limits = limits
        self._body_bytes = 0
        self._body_complete = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
        self._is_awaited = b"expect" in headers
        """True if the client waits for permission to send the body."""
        self._must_drain = False
        self._is_held = False
        """True if the end of the response waits for the end of the body."""

    async def receive(self) -> Message:
        """Return the next message of the request. Raises `HTTPException` 413 if the body is too large."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._is_awaited = False
            self._body_bytes += len(message.get("body", b""))
            self._body_complete = not message.get("more_body", False)
            if self._body_bytes > self._limits.body_bytes:
                raise HTTPException(413, _too_large(self._limits))
        else:
            self._body_complete = True  # the client has left
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the response, with the headers that it lacks."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name.lower() for name, _ in message["headers"]}
            added = {**SECURITY, "x-request-id": self.id}
            if not self._body_complete:
                added["connection"] = "close"
                self._must_drain = not self._is_awaited and self.status != 408
            headers = [(name.encode(), value.encode()) for name, value in added.items()]
            message["headers"] = [*message["headers"], *(header for header in headers if header[0] not in present)]
        elif self._must_drain and not message.get("more_body", False):
            self._is_held = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self) -> None:
        """Read the rest of the body for at most the time limit, then end a response that was sent before it."""
        if not self._is_held:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.seconds):
                while not self._body_complete:
                    message = await self._receive()
                    self._body_complete = message["type"] != "http.request" or not message.get("more_body", False)
        await self._send({"type": "http.response.body", "body": b""})

    async def send_timeout(self) -> None:
        """Send status 504 if the body was complete, else 408."""
        seconds = f"{self._limits.seconds:g} s"
        if self._body_complete:
            await self.send_error(504, f"no answer within {seconds}. Retry later.")
        else:
            await self.send_error(408, f"the body was incomplete after {seconds}. Send it faster.")

    async def send_error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an error as the whole response."""
        body = error_body(status, message)
        fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})


def error_body(status: int, message: str) -> bytes:
    """Return the JSON body of an error."""
    return json.dumps({"error": {"status": status, "message": message}}, ensure_ascii=False).encode("utf-8", "replace")


def _too_large(limits: Limits) -> str:
    return f"the body has more than {limits.body_bytes:,} bytes. Send fewer texts per request."


def head_too_large(limits: Limits) -> str:
    """Return the message for a head of too many bytes."""
    return f"the headers have more than {limits.head_bytes:,} bytes. Send fewer or shorter headers."
