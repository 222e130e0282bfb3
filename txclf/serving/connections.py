"""Connections of the HTTP server: limits on their number, on the size and time of a head, and JSON for its errors.

uvicorn closes idle connections after a response. It neither limits the time until the first head, nor the number of
connections, nor the size of a head with its faster parser, and it answers what is no HTTP with plain text.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from typing import Any

from txclf.serving.middleware import SECURITY, error_body, head_too_large
from txclf.serving.settings import Limits

REFUSED_SECONDS = 5.0
"""Seconds that a connection over the limit may take to send its request, which is then refused."""
CLOSING_SECONDS = 10.0
"""Seconds that a client may take to read the rest of a response, after which the connection is reset."""


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return the protocol class of uvicorn, with limits."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class GuardedProtocol(base):  # type: ignore[misc]
        """One connection. Exactly one timer runs: for the head, the request, or the time after the response."""

        transport: asyncio.Transport
        connections: set[Any]
        cycle: Any
        timer: asyncio.TimerHandle | None = None
        is_refused = False
        is_ended = False
        """True after the last response: what the client still sends is read and dropped."""
        head_bytes = 0
        """Bytes received since the last complete request."""
        unread = 0
        """Connections of this class that were reset before the client had read its answer."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            over = len(self.connections) - limits.connections
            if over > limits.connections:
                self.transport.abort()
            elif over > 0:
                self.is_refused = True
                self._start_timer(REFUSED_SECONDS, self.transport.abort)
            else:
                self._start_timer(limits.seconds, self._end_head)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.is_ended or self.transport.is_closing():
                return
            if self.is_refused:
                self._refuse(503, f"{limits.connections:,} connections are open already. Retry in a second.")
                return
            was_idle, before = self._is_idle, self.cycle
            if was_idle:
                if not self.head_bytes:
                    self._start_timer(limits.seconds, self._end_head)
                self.head_bytes += len(data)
            super().data_received(data)
            if self.cycle is not before:
                self.head_bytes = 0
                if was_idle and not self._is_idle:
                    self._start_request_timer()
            elif was_idle and self.head_bytes > limits.head_bytes:
                self._refuse(431, head_too_large(limits))

        def send_400_response(self, msg: str) -> None:
            if not self._is_idle:
                if self.cycle.response_started or getattr(self, "pipeline", None):
                    self.transport.close()
                    return
                self.cycle.disconnected = True  # the body is broken, so the application must not answer
                self.cycle.message_event.set()
            if self.head_bytes > limits.head_bytes:
                self._refuse(431, head_too_large(limits))
            else:
                self._refuse(400, "not a valid HTTP request. Send HTTP/1.1.")

        def on_response_complete(self) -> None:
            is_unread = self._is_idle and self.cycle.more_body
            super().on_response_complete()
            if is_unread:  # the rest of the body is not the next request
                self.transport.close()
            if not self._is_idle:  # the next request came with the last one
                self._start_request_timer()
            elif self.transport.is_closing():
                self._start_timer(CLOSING_SECONDS, self._reset)
            else:
                self._start_timer(limits.idle_seconds + CLOSING_SECONDS, self.transport.abort)

        @property
        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _end_head(self) -> None:
            if self.head_bytes:
                self._refuse(408, f"the headers were incomplete after {limits.seconds:g} s. Send them faster.")
            else:
                self.transport.close()

        def _refuse(self, status: int, message: str) -> None:
            """Answer outside of a request, and end the connection once the client has seen that.

            A connection that is closed with unread bytes is reset, and the client could not read the response.
            """
            if self.is_ended:
                return
            self.is_ended = True
            self._unset_keepalive_if_required()
            self._start_timer(CLOSING_SECONDS, self.transport.abort)
            self.transport.write(_response(status, message))
            self.transport.write_eof()

        def _start_request_timer(self) -> None:
            # The middleware ends a request in time. This ends what it cannot, such as a client that reads nothing.
            self._start_timer(2 * limits.seconds + CLOSING_SECONDS, self._reset)

        def _reset(self) -> None:
            type(self).unread += self.transport.get_write_buffer_size() > 0
            self.transport.abort()

        def _start_timer(self, seconds: float, action: Callable[[], object]) -> None:
            self._stop_timer()
            self.timer = asyncio.get_running_loop().call_later(seconds, action)

        def _stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return GuardedProtocol


def _response(status: int, message: str) -> bytes:
    """Return the bytes of a response with an error, after which the connection ends."""
    body = error_body(status, message)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **SECURITY,
        **({"retry-after": "1"} if status == 503 else {}),
    }
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body
