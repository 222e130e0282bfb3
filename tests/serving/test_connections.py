"""Connections of the HTTP server: slow, broken, idle and hostile clients over sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from tests.helpers.serving import service_of
from tests.helpers.waiting import wait_until
from txclf.serving.origins import HostPolicy
from txclf.serving.serve import http_server
from txclf.serving.settings import Limits

LIMITS = Limits(body_bytes=200_000, texts=4, characters=1000, seconds=1.0, connections=40, idle_seconds=1.0)
HEAD = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
RIGHT = HEAD + b'content-length: 15\r\n\r\n{"text": "fox"}'


@pytest.fixture(scope="module", params=["h11_impl.H11Protocol", "httptools_impl.HttpToolsProtocol"])
def port(request: pytest.FixtureRequest, tiny_bundle: str) -> Iterator[int]:
    """Serve the tiny bundle in a thread, with each of the parsers of uvicorn, and return the port."""
    module, _, name = request.param.partition(".")
    protocol = getattr(pytest.importorskip(f"uvicorn.protocols.http.{module}"), name)
    service = service_of(tiny_bundle, LIMITS, hosts=HostPolicy(loopback_only=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", protocol)
        server = http_server(service.build_app(), LIMITS)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def received(connection: socket.socket) -> bytes:
    """Return all bytes until the server ends the connection."""
    content = b""
    try:
        while piece := connection.recv(65536):
            content += piece
    except ConnectionResetError:
        content += b"RESET"
    return content


def exchange(port: int, content: bytes) -> bytes:
    """Send bytes over a new connection, and return the first response, or all bytes until the server ends it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with suppress(OSError):  # refused before all of it was sent
            connection.sendall(content)
        response = b""
        while not is_complete(response):
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                return response + b"RESET"
            if not piece:
                break
            response += piece
        return response


def is_complete(response: bytes) -> bool:
    """Return True if a response has the length that it declares."""
    head, end, body = response.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def message(response: bytes, status: int) -> str:
    """Check that a response is one error as JSON, and return its message."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode(), response
    assert b"application/json" in head
    error = json.loads(body)["error"]
    assert error["status"] == status
    return str(error["message"])


def test_protocol_error_is_json(port: int) -> None:
    assert "not a valid HTTP request" in message(exchange(port, b"hello\r\n\r\n"), 400)
    assert "16,384 bytes" in message(exchange(port, HEAD + b"x: " + b"a" * 200_000), 431)
    assert "16,384 bytes" in message(exchange(port, HEAD + b"x: " + b"a" * 20_000 + b"\r\n\r\n"), 431)


def test_incomplete_head_is_answered_and_idle_connection_is_closed(port: int) -> None:
    start = time.monotonic()
    with ExitStack() as stack:
        silent, slow, kept = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(3)
        )
        kept.sendall(RIGHT)
        slow.sendall(HEAD)
        for _ in range(4):  # a byte from time to time does not prolong it
            slow.sendall(b"x")
            time.sleep(0.1)
        assert received(silent) == b""
        assert "incomplete after 1 s" in message(received(slow), 408)
        assert received(kept).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - start < 10


def test_too_many_connections_are_refused(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(LIMITS.connections):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        assert "40 connections are open" in message(exchange(port, RIGHT), 503)
    wait_until(lambda: exchange(port, RIGHT).startswith(b"HTTP/1.1 200"))


@pytest.mark.parametrize("head", [b"content-length: 5000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n4c4b40\r\n"])
def test_large_body_is_read_before_the_connection_is_closed(port: int, head: bytes) -> None:
    """Send the whole body before the answer is read, as most clients do; a reset would lose the answer."""
    for _ in range(5):
        response = exchange(port, HEAD + head + b" " * 5_000_000 + b"\r\n0\r\n\r\n")
        assert "200,000 bytes" in message(response, 413)


def test_client_that_awaits_permission_gets_the_refusal(port: int) -> None:
    response = exchange(port, HEAD + b"content-length: 5000000\r\nexpect: 100-continue\r\n\r\n")
    assert "200,000 bytes" in message(response, 413)


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    texts = [f'{{"text": "{"fox " * n}"}}'.encode() for n in range(1, 6)]
    requests = b"".join(HEAD + b"content-length: %d\r\n\r\n" % len(text) + text for text in texts)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(requests + HEAD)  # the last head is never completed
        content = received(connection)
    assert content.count(b"HTTP/1.1 200") == 5


def hostile() -> Sequence[bytes]:
    """Return requests that a service must survive."""
    bodies = [b"", b"{", b"null", b"1", b'"a"', b"[]", b"{}", b"\xff\xfe{", b"\x00", b"NaN", b"[" * 100_000]
    bodies += [b'{"a":' * 20_000, b'{"text":"\\ud800"}', b'{"text":"\xff"}', b'{"text":NaN}', b'{"text":null}']
    bodies += [b'{"text":"a","top":%s}' % top for top in (b"0", b"-1", b"1e400", b"NaN", b"9" * 5000, b"true", b"1.5")]
    bodies += [
        b'{"texts":%s}' % texts for texts in (b"[]", b"[null]", b"[[]]", b"{}", b"[%s]" % b",".join([b"1"] * 90_000))
    ]
    bodies += [
        b'{"text":%s}' % json.dumps(text).encode()
        for text in ("\0", "\r\n", "\u202e", " " * 99, "\U0010ffff", "a" * 999)
    ]
    bodies += [
        b'{"texts":[%s]}' % b",".join([b'""'] * 60_000),
        b'{"rows":[{%s}]}' % b",".join(b'"%d":1' % i for i in range(15_000)),
    ]
    bodies += [b"{%s}" % b",".join(b'"%d":1' % i for i in range(15_000)), b'{"text":"a","text":"b"}', b'{"text":"fox"}']
    bodies += ['{"text":"fox"}'.encode("utf-16"), b'\xef\xbb\xbf{"text":"fox"}', b'{"text":"a","label":"\\udfff"}']
    requests = [
        b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (path, len(body), body)
        for body in bodies
        for path in (b"/predict", b"/explain", b"/model")
    ]
    targets = [
        b"*",
        b"/../..",
        b"/%ff",
        b"/%00",
        b"//",
        b"http://evil.example/",
        b"/?" + b"a" * 9000,
        b"/\xff",
        b"a:1",
        b"/#x",
        b"?",
    ]
    methods = [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"CONNECT", b"TRACE", b"PRI", b"get", b"G\x00T", b""]
    requests += [
        b"%s %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % (method, target) for method in methods for target in targets[:4]
    ]
    requests += [b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % target for target in targets]
    versions = [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9", b"", b"ICY"]
    requests += [b"GET / %s\r\nhost: localhost\r\n\r\n" % version for version in versions]
    fields = [b"transfer-encoding: chunked\r\ntransfer-encoding: chunked", b"transfer-encoding: gzip, chunked"]
    fields += [
        b"transfer-encoding: chunked\r\ncontent-length: 3",
        b"content-length: 3\r\ncontent-length: 4",
        b"content-length: -1",
    ]
    fields += [
        b"content-length: " + b"9" * 30,
        b"content-length: 0x10",
        b"transfer-encoding: \x0bchunked",
        b"content-length: 1e3",
    ]
    fields += [
        b"content-encoding: gzip",
        b"expect: 100-continue",
        b"expect: x",
        b"upgrade: websocket\r\nconnection: upgrade",
    ]
    fields += [
        b"upgrade: h2c\r\nconnection: upgrade, http2-settings",
        b"connection: close",
        b"connection: \xff",
        b"range: bytes=0-",
    ]
    fields += [
        b"origin: null",
        b"origin: http://evil.example",
        b"host: evil.example",
        b"authorization: Bearer \xff",
        b"x\x00y: 1",
    ]
    fields += [b" folded: 1", b"x: 1\r\n folded", b"no-colon", b": empty", b"x: \x01\x02", b"cookie: " + b"a=b;" * 2000]
    fields += [
        b"accept: " + b"*/*," * 3000,
        b"content-type: application/json; charset=utf-16",
        b"content-type: \xff/\xfe",
    ]
    requests += [
        b"POST /predict HTTP/1.1\r\n%s\r\nhost: localhost\r\ncontent-type: application/json\r\n%s\r\n\r\n%s"
        % (field, length, body)
        for field in fields
        for length, body in ((b"content-length: 15", b'{"text": "fox"}'),)
    ]
    chunks = [
        b"zz\r\n",
        b"-1\r\na\r\n",
        b"ffffffffffffffffff\r\n",
        b"5\r\nabc",
        b"1;" + b"x" * 70_000,
        b"0\r\n" + b"t: 1\r\n" * 9000,
        b"1\r\n{\r\n" * 3000,
    ]
    requests += [HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk for chunk in chunks]
    return [*requests, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n" * 5000, b"\x00" * 5000, b"GET"]


def test_hostile_requests_get_no_500(port: int) -> None:
    requests = hostile()
    assert len(requests) >= 200
    with ThreadPoolExecutor(LIMITS.connections // 2) as pool:
        responses = list(pool.map(lambda request: exchange(port, request), requests))
    for request, response in zip(requests, responses, strict=True):
        shown = request[:200], response
        assert b" 500 " not in response.split(b"\r\n")[0], shown
        assert b"RESET" not in response, shown
        status = int(response.split()[1])
        assert status < 400 or b"application/json" in response or request.startswith(b"HEAD"), shown
    assert exchange(port, RIGHT).startswith(b"HTTP/1.1 200")
