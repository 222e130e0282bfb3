"""Serving: what may be asked and what is refused; on Ray nothing is lost when a replica dies or the service ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from testbed import wait_until

from txclf import Classifier, Seq2Seq, bundle, cli_serve, config, occlusion
from txclf.data.tokenizer import train_tokenizer
from txclf.errors import ConfigError
from txclf.gate import Limits, Metrics
from txclf.model.classifier import TransformerClassifier
from txclf.model.seq2seq import Seq2SeqTransformer
from txclf.occlusion import Row
from txclf.predictor import Busy, Predictor
from txclf.service import service

TXCLF = [sys.executable, "-m", "txclf"]
TEXTS = ["the quick brown fox", "five boxing wizards jump quickly over the lazy dog", "dog", "lazy lazy lazy"]
SMALL = Limits(body_bytes=2000, texts=4, characters=100, seconds=5.0)
MODEL = {"layers": 1, "width": 16, "heads": 2, "feedforward": 16}


def untrained(folder: Path, **settings: Any) -> str:
    """A bundle of a model with random weights."""
    run = config.parse({"name": "tiny", "tokenizer": {"vocab_size": 300, "max_length": 16}, "model": MODEL, **settings})
    tokenizer = train_tokenizer(run.tokenizer, TEXTS * 4, for_targets=run.task == "seq2seq")
    size, length, labels = tokenizer.get_vocab_size(), run.tokenizer.max_length, ["low", "mid", "high"]
    torch.manual_seed(0)
    model: torch.nn.Module = TransformerClassifier(run.model, size, 3, length)
    if run.task == "seq2seq":
        model, labels = Seq2SeqTransformer(run.model, size, size, length, True), []
    thresholds = {"low": 0.0, "mid": 0.3, "high": 1.0} if run.task == "multilabel" else None
    out = str(folder / run.task)
    bundle.save(out, run, model.state_dict(), labels, [tokenizer.to_str()], {}, {}, None, thresholds)
    return out


@contextmanager
def client(folder: str, limits: Limits = SMALL, token: str | None = None) -> Iterator[TestClient]:
    """The service around a bundle in this process, without a network."""
    predictor = Predictor(folder, threads=1, gpu=False, batch_rows=8)
    app = service("some", bundle.describe(folder), predictor.answer, limits, Metrics(), token)
    with TestClient(app, raise_server_exceptions=False) as found:
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
        ({}, "expected one of `text`, `texts` and `rows`"),
        ({"text": "a", "texts": ["b"]}, "expected one of `text`, `texts` and `rows`"),
        ({"text": "a", "topp": 1}, "`topp`: unknown key"),
        ({"text": "a", "top": 0}, "`top`: Input should be greater than or equal to 1"),
        ({"texts": ["a", 7]}, "`texts[1]`: Input should be a valid string"),
        ({"texts": ["a", " \n"]}, "`texts[1]`: no text, it is blank"),
        ({"texts": []}, "`texts`: empty"),
        ({"texts": ["a"] * 5}, "`texts`: 5, at most 4 at once"),
        ({"rows": [{"text": "a"}] * 5}, "`rows`: 5, at most 4 at once"),
        ({"texts": ["a", "b" * 101]}, "`texts[1]`: 101 characters, at most 100"),
        ({"rows": [{"title": "a"}]}, "`rows[0]`: no column `text`"),
        ({"text": "\ud800"}, "`text`: not Unicode, it has half of a surrogate pair"),
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
    assert "no `nope`" in refused(served.post("/explain", json={"text": "a", "label": "nope"}), 422)
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


def counts(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


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
    parts = occlusion.parts(row, most)
    assert len(parts) <= max(most, len(row))
    left = ["".join(text[part.start : part.end] for part in parts if part.column == i) for i, text in enumerate(row)]
    assert ["".join(text.split()) for text in left] == ["".join(text.split()) for text in row]
    pieces = occlusion.pieces(row, parts, [0.0] * len(parts))
    assert tuple("".join(text for text, _ in column) for column in pieces) == row
    without = occlusion.without(row, parts)
    assert len(without) == (len(parts) if len(parts) > 1 else 0)
    for other, part in zip(without, parts, strict=False):
        assert sum(map(len, other)) == sum(map(len, row)) - (part.end - part.start)


def test_what_waits_is_answered_together(tiny_bundle: str) -> None:
    predictor = Predictor(tiny_bundle, threads=1, gpu=False, batch_rows=4, queue=3)
    gate = threading.Event()

    async def ask() -> None:
        predictor.pool.submit(gate.wait)  # the model is busy
        first = asyncio.create_task(predictor.answer([("one",)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rows: list[list[Row]] = [[("a",), ("b",)], [("c",), ("d",)], [("e",)]]
        rest = [asyncio.create_task(predictor.answer(some)) for some in rows]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
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


class Server:
    """`txclf serve` as a process of its own."""

    def __init__(self, folder: str, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*TXCLF, "serve", folder, "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "", **environment},
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        self.curl = self.process.stdout.readline().strip()
        found = re.search(r"at (http://127\.0\.0\.1:\d+) ", first)
        if not found:
            raise AssertionError(first + self.process.communicate(timeout=60)[1])
        self.url = found[1]

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content, status = response.read(), response.status
        except urllib.error.HTTPError as error:
            content, status = error.read(), error.code
        return status, json.loads(content) if content[:1] == b"{" else content.decode()

    def replicas(self) -> list[int]:
        """Processes of replicas, descendants of this server."""
        parents, names = {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                names[int(path.name)] = (path / "cmdline").read_text()
            except OSError:
                continue
            parents[int(path.name)] = int(fields[1])
        found = [pid for pid, name in names.items() if "ServeReplica" in name]
        return [pid for pid in found if self.process.pid in _line(pid, parents)]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code and what was said, after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=90)
        return self.process.returncode, out, err


def _line(pid: int, parents: dict[int, int]) -> Sequence[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found


def stopped(pids: Sequence[int]) -> Callable[[], None]:
    """Stops processes; gives what lets them go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def resume() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return resume


def test_in_this_process_without_ray(tiny_bundle: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    server = Server(tiny_bundle, "--replicas", "0", "--token-file", str(tmp_path / "token"))
    try:
        assert server.curl.startswith(f"curl {server.url}/predict ")
        done = subprocess.run(
            ["sh", "-c", f"{server.curl} -s"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "TXCLF_SERVE_TOKEN": "abc"},
        )
        assert json.loads(done.stdout)["predictions"][0]["label"] in ("low", "mid", "high")
        assert server.ask("/predict", {"text": "a"})[0] == 401
        taken = subprocess.run(
            [*TXCLF, "serve", tiny_bundle, "--port", server.url.rpartition(":")[2]], capture_output=True, text=True
        )
        assert taken.returncode == 2
        assert "in use: choose another, or --port 0" in taken.stderr
    finally:
        code, out, err = server.end(signal.SIGINT)
    assert (code, err) == (0, "")
    assert out == "ended; every request was answered\n"


def test_what_cannot_be_served_is_said(tiny_bundle: str, tmp_path: Path) -> None:
    def said(*words: str, **environment: str) -> str:
        done = subprocess.run(
            [*TXCLF, "serve", *words], capture_output=True, text=True, env={**os.environ, **environment}
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "not a model bundle" in said(str(tmp_path))
    assert "TXCLF_SERVE_TOKEN`: expected a token" in said(tiny_bundle, TXCLF_SERVE_TOKEN="a b")
    assert "cannot be read" in said(tiny_bundle, "--token-file", str(tmp_path / "none"))
    assert "--max-replicas 1: expected at least" in said(tiny_bundle, "--replicas", "2", "--max-replicas", "1")
    assert "--host 192.0.2.1" in said(tiny_bundle, "--host", "192.0.2.1")


def test_a_missing_package_is_named_with_its_extra(tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "PACKAGES", ("fastapi", "not_installed_here"))
    with pytest.raises(ConfigError, match=r"`not_installed_here`: pip install 'txclf\[serve\]'"):
        cli_serve.serve(tiny_bundle)


def test_on_ray_time_and_queue_are_limited(tiny_bundle: str) -> None:
    words = ["--batch", "1", "--queue", "2", "--timeout", "3", "--cpus", "0.5", "--max-bytes", "3000"]
    server = Server(tiny_bundle, *words)
    try:
        assert server.ask("/predict", {"text": "fox"})[0] == 200
        assert server.ask("/predict", {"text": "x" * 4000})[0] == 413
        assert server.ask("/healthz") == (200, {"status": "ok"})
        assert counts(server.ask("/metrics")[1])["txclf_serve_replicas"] == 1
        # A body that does not come.
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(
                b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(4096).splitlines()[0]
        # A replica that hangs: two requests are with it, two wait (three while Ray Serve places one), the others are
        # refused at once.
        resume = stopped(server.replicas())
        try:
            with ThreadPoolExecutor(10) as pool:
                found = [status for status, _ in pool.map(lambda _: server.ask("/predict", {"text": "fox"}), range(10))]
        finally:
            resume()
        assert set(found) == {503, 504}
        assert 2 <= found.count(504) <= 5
        wait_until(lambda: server.ask("/predict", {"text": "fox"})[0] == 200, 30)
    finally:
        code, out, err = server.end()
    assert (code, err) == (0, "")
    assert out == "ended; every request was answered\n"


@pytest.mark.faults
def test_nothing_is_lost(tiny_bundle: str) -> None:
    """Replicas killed under load, then the end asked for while requests are open."""
    server = Server(tiny_bundle, "--replicas", "2", "--cpus", "0.5", "--timeout", "60")
    right = Classifier.load(tiny_bundle)(TEXTS)
    statuses: list[int] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            status, content = server.ask("/predict", {"texts": TEXTS})
            statuses.append(status)
            if status == 200:
                assert [one["label"] for one in content["predictions"]] == [one.label for one in right]

    try:
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(load) for _ in range(8)]
            try:
                for _ in range(3):
                    wait_until(lambda: len(server.replicas()) == 2, 60)
                    before = len(statuses)
                    wait_until(lambda: len(statuses) > before + 50, 60)  # noqa: B023
                    os.kill(server.replicas()[0], signal.SIGKILL)
                wait_until(lambda: len(server.replicas()) == 2, 60)
            finally:
                over.set()
            for one in clients:
                one.result()
        assert set(statuses) == {200}
        assert counts(server.ask("/metrics")[1])["txclf_serve_retries_total"] >= 1
        resume = stopped(server.replicas())
        with ThreadPoolExecutor(4) as pool:
            open_requests = [pool.submit(server.ask, "/predict", {"texts": TEXTS}) for _ in range(4)]
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            with pytest.raises(urllib.error.URLError, match="refused"):
                server.ask("/healthz")
            assert server.process.poll() is None
            resume()
            assert [one.result()[0] for one in open_requests] == [200] * 4
    finally:
        code, out, err = server.end()
    assert (code, err) == (0, "")
    assert out.endswith("ended; every request was answered\n")  # before it Ray's notes of those that were killed
