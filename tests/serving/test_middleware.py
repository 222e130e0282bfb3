"""Request middleware: token, size and time limits, security headers and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.helpers.serving import counts, error_message, service_client
from txclf.serving.middleware import SECURITY, Metrics, RequestMiddleware, error_body
from txclf.serving.settings import Limits


@pytest.fixture(scope="module")
def served(tiny_bundle: str) -> Iterator[TestClient]:
    """Serve the tiny bundle."""
    with service_client(tiny_bundle) as client:
        yield client


def client_of(limits: Limits, metrics: Metrics) -> TestClient:
    """Wrap an application that sleeps for the seconds in the body of `/predict` and in the query of `/model`."""

    async def predict(request: Request) -> Response:
        await asyncio.sleep(await request.json())
        return JSONResponse({"answered": True}, headers={"cache-control": "max-age=1"})

    async def model(request: Request) -> Response:
        await asyncio.sleep(float(request.query_params["seconds"]))
        return JSONResponse({})

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/model", model)])
    app.add_middleware(RequestMiddleware, limits=limits, token=None, metrics=metrics)
    return TestClient(app)


def test_body_over_the_limit_is_refused(served: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert "2,000 bytes" in error_message(served.post("/predict", json={"text": "a" * 2001}), 413)
    chunks = (b" " * 500 for _ in range(10))  # without a content-length
    assert "2,000 bytes" in error_message(served.post("/predict", content=chunks, headers=headers), 413)


def test_body_that_is_not_declared_json_is_refused(served: TestClient) -> None:
    response = served.post("/predict", content=b"{}", headers={"content-type": "text/plain"})
    assert "Content-Type" in error_message(response, 415)


def test_token_is_required_except_for_public_paths(tiny_bundle: str) -> None:
    with service_client(tiny_bundle, token="s3cret") as served:
        for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/serve.js", "/page/serve.css"):
            assert served.get(path).status_code == 200
        for path in ("/model", "/metrics", "/nothing"):
            assert "no token" in error_message(served.get(path), 401)
        for header in ("Bearer wrong", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "Bearer", "Bearer \u00e9"):
            sent = served.post("/predict", json={"text": "a"}, headers={b"Authorization": header.encode("latin-1")})
            error_message(sent, 401)
            assert sent.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer s3cret"}
        assert served.post("/predict", json={"text": "a"}, headers=right).status_code == 200
        assert served.get("/model", headers=right).json()["labels"] == ["low", "mid", "high"]


def test_request_over_the_time_limit_is_answered_with_504() -> None:
    metrics = Metrics()
    client = client_of(Limits(seconds=0.1), metrics)
    assert error_message(client.post("/predict", json=5), 504) == "no answer within 0.1 s. Retry later."
    assert error_message(client.get("/model?seconds=5"), 504) == "no answer within 0.1 s. Retry later."
    assert client.post("/predict", json=0).json() == {"answered": True}
    assert metrics.open._value.get() == 0


def test_too_many_open_requests_are_refused() -> None:
    response = client_of(Limits(open_requests=0), Metrics()).get("/model?seconds=0")
    assert error_message(response, 503) == "0 requests are open already. Retry in a second."
    assert response.headers["retry-after"] == "1"


def test_response_has_security_headers_unless_it_sets_them() -> None:
    client = client_of(Limits(), Metrics())
    headers = client.post("/predict", json=0).headers
    assert headers["cache-control"] == "max-age=1"
    for name in set(SECURITY) - {"cache-control"}:
        assert headers[name] == SECURITY[name]


def test_count_replicas_sets_the_gauge() -> None:
    metrics = Metrics()
    metrics.count_replicas(3)
    assert metrics.running == 3
    assert counts(generate_latest(metrics.registry).decode())["txclf_serve_replicas"] == 3


def test_error_body_keeps_unicode_and_replaces_lone_surrogates() -> None:
    assert json.loads(error_body(422, "no `é\ud800`")) == {"error": {"status": 422, "message": "no `é?`"}}
