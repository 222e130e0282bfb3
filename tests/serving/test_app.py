"""HTTP service: routes, responses and errors."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.helpers.prediction import with_quantiles
from tests.helpers.serving import TEXTS, counts, error_message, service_client, untrained
from tests.helpers.waiting import wait_until
from txclf import Classifier, Seq2Seq
from txclf.inference import bundle
from txclf.inference.occlusion import Row
from txclf.serving.app import PredictionService, Unavailable
from txclf.serving.batcher import Answers, QueueFull
from txclf.serving.middleware import Metrics
from txclf.serving.settings import Limits


@pytest.fixture(scope="module")
def served(tiny_bundle: str) -> Iterator[TestClient]:
    """Serve the tiny bundle."""
    with service_client(tiny_bundle) as client:
        yield client


def test_predict_returns_the_predictions_of_the_bundle(served: TestClient, tiny_bundle: str) -> None:
    expected = Classifier.load(tiny_bundle)(TEXTS)
    body = {"texts": TEXTS, "top": 2, "probabilities": True}
    predictions = served.post("/predict", json=body).json()["predictions"]
    for prediction, right in zip(predictions, expected, strict=True):
        assert prediction["label"] == right.label
        assert prediction["probability"] == pytest.approx(right.probability, abs=1e-6)
        assert prediction["probabilities"] == pytest.approx(right.probabilities, abs=1e-6)
        best = sorted(right.probabilities, key=lambda label: -right.probabilities[label])[:2]
        assert [score["label"] for score in prediction["top"]] == best
    alone = served.post("/predict", json={"text": TEXTS[0]}).json()["predictions"]
    assert alone == [{"label": expected[0].label, "probability": pytest.approx(expected[0].probability, abs=1e-6)}]
    rows = served.post("/predict", json={"rows": [{"text": text} for text in TEXTS]}).json()["predictions"]
    assert [row["label"] for row in rows] == [right.label for right in expected]


def test_predict_with_coverage_adds_the_prediction_sets(tiny_bundle: str, tmp_path: Path) -> None:
    folder = with_quantiles(tiny_bundle, tmp_path, [0.9 - i / 40 for i in range(35)])
    classifier = Classifier.load(folder)
    with service_client(folder) as client:
        for coverage in (0.01, 0.8, 1):
            predictions = client.post("/predict", json={"texts": TEXTS, "coverage": coverage}).json()["predictions"]
            expected = classifier.prediction_sets(TEXTS, coverage)
            assert [prediction["labels_in_set"] for prediction in predictions] == expected
            assert [prediction["label"] for prediction in predictions] == [labels[0] for labels in expected]
        for bad, problem in ((0, "greater than 0"), (1.5, "less than or equal to 1"), ("x", "valid number")):
            message = error_message(client.post("/predict", json={"text": "fox", "coverage": bad}), 422)
            assert message.startswith("`coverage`: ")
            assert problem in message
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        assert "true one" in schemas["PredictRequest"]["properties"]["coverage"]["description"]
        assert "labels_in_set" in schemas["TextPrediction"]["properties"]


def test_predict_coverage_of_a_model_without_sets_is_refused(served: TestClient, tmp_path: Path) -> None:
    message = error_message(served.post("/predict", json={"text": "fox", "coverage": 0.9}), 422)
    assert message.startswith("`coverage`: the model has no quantiles for prediction sets")
    with service_client(untrained(tmp_path, task="multilabel")) as tags:
        message = error_message(tags.post("/predict", json={"text": "fox", "coverage": 0.9}), 422)
    assert message == "`coverage`: a `multilabel` model chooses labels by their thresholds. Remove `coverage`."


def test_multilabel_service_predicts_rows_by_thresholds(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="multilabel", data={"text": ["title", "body"]})
    with service_client(folder) as served:
        rows = [{"title": "the fox", "body": "lazy dog"}, {"title": "five wizards", "body": None}]
        predictions = served.post("/predict", json={"rows": rows, "probabilities": True}).json()["predictions"]
        right = Classifier.load(folder).probabilities([("the fox", "lazy dog"), ("five wizards", "")])
        for prediction, row in zip(predictions, right, strict=True):
            assert list(prediction["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-6)
            assert "low" in prediction["labels"]
            assert ("mid" in prediction["labels"]) == (row[1] >= 0.3)
            assert "high" not in prediction["labels"]
        assert "`title`, `body`" in error_message(served.post("/predict", json={"text": "fox"}), 422)
        assert "no column `body`" in error_message(served.post("/predict", json={"rows": [{"title": "a"}]}), 422)
        unknown = {"rows": [{"title": "a", "body": "b", "end": "c"}]}
        assert "`end` is no column" in error_message(served.post("/predict", json=unknown), 422)
        explanation = served.post("/explain", json={"row": rows[0], "label": "mid"}).json()
        assert {name: [piece["text"] for piece in column] for name, column in explanation["columns"].items()} == {
            "title": ["the", " ", "fox"],
            "body": ["lazy", " ", "dog"],
        }
        model = served.get("/model").json()
        assert model["thresholds"]["mid"] == 0.3
        assert (model["is_multilabel"], model["is_seq2seq"]) == (True, False)


def test_seq2seq_service_returns_outputs_and_refuses_labels(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="seq2seq", data={"target": "target"})
    with service_client(folder) as served:
        predictions = served.post("/predict", json={"texts": TEXTS[:2]}).json()["predictions"]
        assert [prediction["output"] for prediction in predictions] == Seq2Seq.load(folder)(TEXTS[:2])
        assert "no labels" in error_message(served.post("/predict", json={"text": "a", "top": 1}), 422)
        assert "no labels" in error_message(served.post("/explain", json={"text": "a"}), 422)
        assert served.get("/model").json()["is_seq2seq"] is True


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "expected exactly one of `text`, `texts` and `rows`"),
        ({"text": "a", "texts": ["b"]}, "expected exactly one of `text`, `texts` and `rows`"),
        ({"text": "a", "topp": 1}, "`topp`: unknown key"),
        ({"text": "a", "top": 0}, "`top`: Input should be greater than or equal to 1"),
        ({"texts": ["a", 7]}, "`texts[1]`: Input should be a valid string"),
        ({"texts": ["a", " \n"]}, "`texts[1]`: the text is blank"),
        ({"texts": []}, "`texts`: the list is empty"),
        ({"texts": ["a"] * 5}, "`texts`: 5 texts, at most 4 per request"),
        ({"rows": [{"text": "a"}] * 5}, "`rows`: 5 texts, at most 4 per request"),
        ({"texts": ["a", "b" * 101]}, "`texts[1]`: 101 characters, at most 100"),
        ({"rows": [{"title": "a"}]}, "`rows[0]`: no column `text`"),
        ({"text": "\ud800"}, "`text`: not Unicode, a surrogate pair is incomplete"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_predict_invalid_body_names_the_key(served: TestClient, body: Any, message: str) -> None:
    response = served.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert error_message(response, 422).startswith(message)


def test_errors_are_json(served: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert "not JSON" in error_message(served.post("/predict", content=b"{", headers=headers), 422)
    assert error_message(served.get("/nothing"), 404) == "Not Found"
    assert error_message(served.get("/predict"), 405) == "Method Not Allowed"
    unknown = served.post("/explain", json={"text": "a", "label": "nope"})
    assert "no label `nope`" in error_message(unknown, 422)
    for content, reason in (
        (b"[" * 1900, "nested too deeply"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": NaN}', "Input should be a valid string"),
    ):
        assert reason in error_message(served.post("/predict", content=content, headers=headers), 422)
    assert served.post("/predict", json={"text": "fox"}).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (QueueFull(), 503, "the queue is full. Retry in a second."),
        (Unavailable("gone"), 503, "gone"),
        (RuntimeError("secret"), 500, "the service failed. Look for request ID in its log."),
    ],
)
def test_predict_failure_of_the_model_becomes_status(
    tiny_bundle: str, error: Exception, status: int, message: str
) -> None:
    async def ask(rows: Any) -> Answers:
        raise error

    service = PredictionService(
        name="some", metadata=bundle.read_metadata(tiny_bundle), ask=ask, limits=Limits(), metrics=Metrics()
    )
    with TestClient(service.build_app(), raise_server_exceptions=False) as client:
        response = client.post("/predict", json={"text": "fox"})
        assert error_message(response, status) == message.replace("ID", response.headers["x-request-id"])
        assert "content-security-policy" in response.headers
        counted = counts(client.get("/metrics").text)
        assert counted[f'txclf_serve_requests_total{{path="/predict",status="{status}"}}'] == 1
        assert ("retry-after" in response.headers) == (status == 503)


def test_explain_queue_is_bounded_and_predict_is_answered_meanwhile(tiny_bundle: str) -> None:
    """Hold the rows of /explain, whose text has two words, until a prediction was answered."""
    released = threading.Event()
    calls: list[int] = []

    async def ask(rows: Sequence[Row]) -> Answers:
        calls.append(len(rows))
        while len(rows) > 1 and not released.is_set():
            await asyncio.sleep(0.01)
        return Answers(np.full((len(rows), 3), 1 / 3, np.float32), [["low"]] * len(rows), [], len(rows), 0.0)

    service = PredictionService(
        name="some",
        metadata=bundle.read_metadata(tiny_bundle),
        ask=ask,
        limits=Limits(explanations=1, queued_explanations=1),
        metrics=Metrics(),
    )
    with TestClient(service.build_app()) as client, ThreadPoolExecutor(4) as pool:
        body = {"text": " ".join(["word"] * 40)}
        found = [pool.submit(client.post, "/explain", json=body) for _ in range(4)]
        wait_until(lambda: sum(each.done() for each in found) == 2)
        assert client.post("/predict", json={"text": "fox"}).status_code == 200
        released.set()
        assert sorted(each.result().status_code for each in found) == [200, 200, 503, 503]
    assert sorted(calls) == [1, 9, 9, 16, 16, 16, 16]  # 41 rows each


def test_healthz_without_a_replica_returns_503(tiny_bundle: str) -> None:
    async def ask(rows: Any) -> Answers:
        raise AssertionError("not called")

    service = PredictionService(
        name="some",
        metadata=bundle.read_metadata(tiny_bundle),
        ask=ask,
        limits=Limits(),
        metrics=Metrics(),
        is_healthy=lambda: False,
    )
    with TestClient(service.build_app()) as client:
        assert "no replica" in error_message(client.get("/healthz"), 503)


def test_pages_and_api_document_use_no_other_host(served: TestClient) -> None:
    for path in ("/", "/docs"):
        page = served.get(path)
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        # No resource of another host, and no markup that the policy forbids.
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
        assert not re.findall(r"<style|style=|<script>|onclick", page.text)
    api = served.get("/openapi.json").json()
    assert api["info"]["title"] == "txclf serve"
    assert set(api["paths"]) == {"/predict", "/explain", "/model", "/healthz", "/metrics"}
    assert {"200", "413", "415", "422", "503", "504"} <= set(api["paths"]["/predict"]["post"]["responses"])


def test_metrics_count_requests_and_texts(served: TestClient) -> None:
    before = counts(served.get("/metrics").text)
    served.post("/predict", json={"texts": ["fox", "dog"]})
    served.post("/predict", json={"texts": []})
    after = counts(served.get("/metrics").text)
    rise = {name: after[name] - before.get(name, 0) for name in after}
    assert rise['txclf_serve_requests_total{path="/predict",status="200"}'] == 1
    assert rise['txclf_serve_requests_total{path="/predict",status="422"}'] == 1
    assert rise["txclf_serve_texts_total"] == 2
    assert rise["txclf_serve_batch_texts_sum"] == 2
    assert after["txclf_serve_open_requests"] == 1  # the request of /metrics itself


def test_explain_weight_is_the_drop_in_log_odds(served: TestClient, tiny_bundle: str) -> None:
    classifier = Classifier.load(tiny_bundle)
    text = "the quick  brown fox"
    explanation = served.post("/explain", json={"text": text}).json()
    pieces = explanation["columns"]["text"]
    assert "".join(piece["text"] for piece in pieces) == text
    whole = classifier([text])[0]
    assert (explanation["label"], explanation["method"]) == (whole.label, "occlusion")
    occluded = classifier(["the  brown fox"])[0].probabilities[whole.label]
    odds = [np.log(p) - np.log1p(-p) for p in (whole.probability, occluded)]
    weight = next(piece["weight"] for piece in pieces if piece["text"] == "quick")
    assert weight == pytest.approx(odds[0] - odds[1], abs=1e-4)
    one_word = served.post("/explain", json={"text": "fox"}).json()["columns"]["text"]
    assert [piece["weight"] for piece in one_word] == [None]
