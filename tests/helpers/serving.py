"""Untrained bundles, services in this process and services as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from starlette.testclient import TestClient

from tests.helpers.waiting import PATIENCE_S
from txclf.config import run_config
from txclf.data.tokenizer import train_tokenizer
from txclf.inference import bundle
from txclf.model.classifier import TransformerClassifier
from txclf.model.seq2seq import Seq2SeqTransformer
from txclf.serving.app import PredictionService
from txclf.serving.middleware import Metrics
from txclf.serving.predictor import Predictor
from txclf.serving.settings import Limits

TEXTS = ["the quick brown fox", "five boxing wizards jump quickly over the lazy dog", "dog", "lazy lazy lazy"]


MODEL = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}


def untrained(folder: Path, **settings: Any) -> str:
    """Save a bundle with random weights and return its folder. `settings` are sections of the run file."""
    run = run_config.parse(
        {"name": "tiny", "tokenizer": {"vocab_size": 300, "max_length": 16}, "model": MODEL, **settings}
    )
    tokenizer = train_tokenizer(run.tokenizer, TEXTS * 4, for_targets=run.task_spec.is_seq2seq)
    size, length, labels = tokenizer.get_vocab_size(), run.tokenizer.max_length, ["low", "mid", "high"]
    torch.manual_seed(0)
    model: torch.nn.Module = TransformerClassifier(run.model, size, 3, length)
    if run.task_spec.is_seq2seq:
        model, labels = Seq2SeqTransformer(run.model, size, size, length, True), []
    thresholds = {"low": 0.0, "mid": 0.3, "high": 1.0} if run.task_spec.is_multilabel else None
    out = str(folder / run.task)
    bundle.save(
        out,
        run,
        model.state_dict(),
        labels=labels,
        tokenizers=[tokenizer.to_str()],
        metrics={},
        rows={},
        calibration=None,
        thresholds=thresholds,
    )
    return out


SMALL_LIMITS = Limits(body_bytes=2000, texts=4, characters=100, seconds=5.0)


def service_of(folder: str, limits: Limits = SMALL_LIMITS, **settings: Any) -> PredictionService:
    """Return the service of a bundle in this process."""
    predictor = Predictor(folder, threads=1, use_gpu=False, max_batch_size=8)
    metadata = bundle.read_metadata(folder)
    return PredictionService(
        name="some", metadata=metadata, ask=predictor.answer, limits=limits, metrics=Metrics(), **settings
    )


@contextmanager
def service_client(folder: str, limits: Limits = SMALL_LIMITS, token: str | None = None) -> Iterator[TestClient]:
    """Serve a bundle in this process, without a network."""
    service = service_of(folder, limits, token=token)
    with TestClient(service.build_app(), raise_server_exceptions=False) as client:
        yield client


def error_message(response: Any, status: int) -> str:
    """Check that a response is an error as JSON, and return its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["status"] == status
    return str(error["message"])


def counts(text: str) -> dict[str, float]:
    """Parse the response of `GET /metrics`."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


class Server:
    """Process of `txclf serve` and its URL."""

    def __init__(self, folder: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*TXCLF, "serve", folder, "--quiet", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "", **environment},
        )
        assert self.process.stdout is not None
        first_line = self.process.stdout.readline()
        self.curl = self.process.stdout.readline().strip()
        url = re.search(r"at (http://127\.0\.0\.1:\d+) ", first_line)
        if not url:
            raise AssertionError(first_line + self.process.communicate(timeout=PATIENCE_S)[1])
        self.url = url[1]

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request and return the status and the parsed body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content, status = response.read(), response.status
        except urllib.error.HTTPError as error:
            content, status = error.read(), error.code
        return status, json.loads(content) if content[:1] == b"{" else content.decode()

    def replicas(self) -> list[int]:
        """Return the process ids of the replicas of this server."""
        parents, names = {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                names[int(path.name)] = (path / "cmdline").read_text()
            except OSError:
                continue
            parents[int(path.name)] = int(fields[1])
        replicas = [pid for pid, name in names.items() if "ServeReplica" in name]
        return [pid for pid in replicas if self.process.pid in _ancestors(pid, parents)]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal, wait, and return the exit code, stdout and stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


TXCLF = [sys.executable, "-m", "txclf"]


def _ancestors(pid: int, parents: dict[int, int]) -> Sequence[int]:
    ancestors = []
    while pid in parents:
        pid = parents[pid]
        ancestors.append(pid)
    return ancestors
