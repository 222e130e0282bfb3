"""The service: what may be asked, what is answered and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.helpers.serving import TEXTS, counts, untrained
from txclf import Classifier, Seq2Seq
from txclf.inference import bundle
from txclf.serving import occlusion
from txclf.serving.app import PredictionService
from txclf.serving.batcher import QueueFull
from txclf.serving.middleware import Limits, Metrics
from txclf.serving.occlusion import Row
from txclf.serving.predictor import Predictor

SMALL = Limits(body_bytes=2000, texts=4, characters=100, seconds=5.0)


@contextmanager
def client(folder: str, limits: Limits = SMALL, token: str | None = None) -> Iterator[TestClient]:
    """The service around a bundle in this process, without a network."""
    predictor = Predictor(folder, threads=1, use_gpu=False, max_batch_size=8)
    service = PredictionService(
        name="some",
        metadata=bundle.read_metadata(folder),
        ask=predictor.answer,
        limits=limits,
        metrics=Metrics(),
        token=token,
    )
    with TestClient(service.build_app(), raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def served(tiny_bundle: str) -> Iterator[TestClient]:
    with client(tiny_bundle) as found:
        yield found


def refused(response: Any, status: int) -> str:
    """The message of a refusal, which is JSON."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()["error"]
    assert content["status"] == status
    return str(content["message"])


def test_answers_are_the_bundles(served: TestClient, tiny_bundle: str) -> None:
    classifier = Classifier.load(tiny_bundle)
    expected = classifier(TEXTS)
    asked = {"texts": TEXTS, "top": 2, "probabilities": True}
    found = served.post("/predict", json=asked).json()["predictions"]
    for one, right in zip(found, expected, strict=True):
        assert one["label"] == right.label
        assert one["probability"] == pytest.approx(right.probability, abs=1e-6)
        assert one["probabilities"] == pytest.approx(right.probabilities, abs=1e-6)
        best = sorted(right.probabilities, key=lambda label: -right.probabilities[label])[:2]
        assert [score["label"] for score in one["top"]] == best
    alone = served.post("/predict", json={"text": TEXTS[0]}).json()["predictions"]
    assert alone == [{"label": expected[0].label, "probability": pytest.approx(expected[0].probability, abs=1e-6)}]
    rows = served.post("/predict", json={"rows": [{"text": text} for text in TEXTS]}).json()["predictions"]
    assert [one["label"] for one in rows] == [one.label for one in expected]


def test_several_columns_thresholds_and_outputs(tmp_path: Path) -> None:
    several = untrained(tmp_path, task="multilabel", data={"text": ["title", "body"]})
    with client(several) as served:
        rows = [{"title": "the fox", "body": "lazy dog"}, {"title": "five wizards", "body": None}]
        asked = {"rows": rows, "probabilities": True}
        found = served.post("/predict", json=asked).json()["predictions"]
        right = Classifier.load(several).probabilities([("the fox", "lazy dog"), ("five wizards", "")])
        for one, row in zip(found, right, strict=True):
            assert list(one["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-6)
            assert "low" in one["labels"]
            assert ("mid" in one["labels"]) == (row[1] >= 0.3)
            assert "high" not in one["labels"]
        assert "`title`, `body`" in refused(served.post("/predict", json={"text": "fox"}), 422)
        assert "no column `body`" in refused(served.post("/predict", json={"rows": [{"title": "a"}]}), 422)
        more = {"rows": [{"title": "a", "body": "b", "end": "c"}]}
        assert "`end` is no column" in refused(served.post("/predict", json=more), 422)
        explained = served.post("/explain", json={"row": rows[0], "label": "mid"}).json()
        assert {name: [piece["text"] for piece in column] for name, column in explained["columns"].items()} == {
            "title": ["the", " ", "fox"],
            "body": ["lazy", " ", "dog"],
        }
        assert served.get("/model").json()["thresholds"]["mid"] == 0.3
    pairs = untrained(tmp_path, task="seq2seq", data={"target": "target"})
    with client(pairs) as served:
        found = served.post("/predict", json={"texts": TEXTS[:2]}).json()["predictions"]
        assert [one["output"] for one in found] == Seq2Seq.load(pairs)(TEXTS[:2])
        assert "no labels" in refused(served.post("/predict", json={"text": "a", "top": 1}), 422)
        assert "no labels" in refused(served.post("/explain", json={"text": "a"}), 422)


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
def test_what_is_wrong_in_a_body_is_named(served: TestClient, body: Any, message: str) -> None:
    sent = served.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert refused(sent, 422).startswith(message)


def test_other_refusals_are_json_too(served: TestClient) -> None:
    kind = {"content-type": "application/json"}
    assert "not JSON" in refused(served.post("/predict", content=b"{", headers=kind), 422)
    assert "2,000 bytes" in refused(served.post("/predict", json={"text": "a" * 2001}), 413)
    chunks = (b" " * 500 for _ in range(10))  # without a length in the head
    assert "2,000 bytes" in refused(served.post("/predict", content=chunks, headers=kind), 413)
    assert "Content-Type" in refused(
        served.post("/predict", content=b"{}", headers={"content-type": "text/plain"}), 415
    )
    assert refused(served.get("/nothing"), 404) == "Not Found"
    assert refused(served.get("/predict"), 405) == "Method Not Allowed"
    assert "no label `nope`" in refused(served.post("/explain", json={"text": "a", "label": "nope"}), 422)
    deep = b"[" * 1900
    assert served.post("/predict", content=deep, headers=kind).status_code in (400, 422)
    assert served.post("/predict", json={"text": "fox"}).status_code == 200


def test_the_token_is_asked_for(tiny_bundle: str) -> None:
    with client(tiny_bundle, token="s3cret") as served:
        for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/serve.js", "/page/serve.css"):
            assert served.get(path).status_code == 200
        for path in ("/model", "/metrics", "/nothing"):
            assert "no token" in refused(served.get(path), 401)
        for header in ("Bearer wrong", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "Bearer", "Bearer \u00e9"):
            sent = served.post("/predict", json={"text": "a"}, headers={b"Authorization": header.encode("latin-1")})
            refused(sent, 401)
            assert sent.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer s3cret"}
        assert served.post("/predict", json={"text": "a"}, headers=right).status_code == 200
        assert served.get("/model", headers=right).json()["labels"] == ["low", "mid", "high"]


def test_pages_api_and_counts(served: TestClient) -> None:
    for path in ("/", "/docs"):
        page = served.get(path)
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        # Nothing of another host, nothing in the markup that the policy forbids.
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
        assert not re.findall(r"<style|style=|<script>|onclick", page.text)
    api = served.get("/openapi.json").json()
    assert set(api["paths"]) == {"/predict", "/explain", "/model", "/healthz", "/metrics"}
    assert {"200", "413", "415", "422", "503", "504"} <= set(api["paths"]["/predict"]["post"]["responses"])
    before = counts(served.get("/metrics").text)
    served.post("/predict", json={"texts": ["fox", "dog"]})
    served.post("/predict", json={"texts": []})
    after = counts(served.get("/metrics").text)
    rise = {name: after[name] - before.get(name, 0) for name in after}
    assert rise['txclf_serve_requests_total{path="/predict",status="200"}'] == 1
    assert rise['txclf_serve_requests_total{path="/predict",status="422"}'] == 1
    assert rise["txclf_serve_texts_total"] == 2
    assert rise["txclf_serve_batch_texts_sum"] == 2
    assert after["txclf_serve_open_requests"] == 1  # this one


def test_an_explanation_is_what_is_left_out(served: TestClient, tiny_bundle: str) -> None:
    classifier = Classifier.load(tiny_bundle)
    text = "the quick  brown fox"
    found = served.post("/explain", json={"text": text}).json()
    pieces = found["columns"]["text"]
    assert "".join(piece["text"] for piece in pieces) == text
    whole = classifier([text])[0]
    assert (found["label"], found["method"]) == (whole.label, "occlusion")
    others = classifier(["the   brown fox"])[0].probabilities[whole.label]
    odds = [np.log(p) - np.log1p(-p) for p in (whole.probability, others)]
    assert next(piece["weight"] for piece in pieces if piece["text"] == "quick") == pytest.approx(
        odds[0] - odds[1], abs=1e-4
    )
    assert [piece["weight"] for piece in served.post("/explain", json={"text": "fox"}).json()["columns"]["text"]] == [
        None
    ]


@pytest.mark.parametrize(
    "row", [("a b c", ""), ("", "x"), ("word " * 300,), ("a " * 100, "b " * 3, "c " * 50), ("日本 語a b",), ("  ",)]
)
@pytest.mark.parametrize("most", [1, 4, 64])
def test_parts_cover_every_word_once(row: Row, most: int) -> None:
    parts = occlusion.split_row(row, most)
    assert len(parts) <= max(most, len(row))
    left = ["".join(text[part.start : part.end] for part in parts if part.column == i) for i, text in enumerate(row)]
    assert ["".join(text.split()) for text in left] == ["".join(text.split()) for text in row]
    pieces = occlusion.weighted_texts(row, parts, [0.0] * len(parts))
    assert tuple("".join(text for text, _ in column) for column in pieces) == row
    without = occlusion.occluded_rows(row, parts)
    assert len(without) == (len(parts) if len(parts) > 1 else 0)
    for other, part in zip(without, parts, strict=False):
        assert sum(map(len, other)) == sum(map(len, row)) - (part.end - part.start)


def test_what_waits_is_answered_together(tiny_bundle: str) -> None:
    predictor = Predictor(tiny_bundle, threads=1, use_gpu=False, max_batch_size=4, max_queue=3)
    gate = threading.Event()

    async def ask() -> None:
        predictor.pool.submit(gate.wait)  # the model is busy
        first = asyncio.create_task(predictor.answer([("one",)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rows: list[list[Row]] = [[("a",), ("b",)], [("c",), ("d",)], [("e",)]]
        rest = [asyncio.create_task(predictor.answer(some)) for some in rows]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await predictor.answer([("too many",)])
        rest[1].cancel()
        await asyncio.sleep(0)
        gate.set()
        assert (await first).batch_rows == 1
        found = [await rest[0], await rest[2]]
        assert [one.batch_rows for one in found] == [3, 3]  # the one that was cancelled is not computed
        alone = predictor.compute([("a",), ("b",), ("e",)]).probabilities
        np.testing.assert_allclose(np.concatenate([one.probabilities for one in found]), alone, atol=1e-6)
        large = await predictor.answer([("x",)] * 9)  # more than a batch
        assert large.probabilities.shape == (9, 3)
        bad: Any = [(7,)]
        results = await asyncio.gather(
            *(predictor.answer(some) for some in ([("a",)], bad, [("b",)])), return_exceptions=True
        )
        assert [isinstance(one, Exception) for one in results] == [False, True, False]

    asyncio.run(ask())
