"""Untrained bundles, and services run as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from txclf.config import run_config
from txclf.data.tokenizer import train_tokenizer
from txclf.inference import bundle
from txclf.model.classifier import TransformerClassifier
from txclf.model.seq2seq import Seq2SeqTransformer

TEXTS = ["the quick brown fox", "five boxing wizards jump quickly over the lazy dog", "dog", "lazy lazy lazy"]


MODEL = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}


def untrained(folder: Path, **settings: Any) -> str:
    """A bundle of a model with random weights."""
    run = run_config.parse(
        {"name": "tiny", "tokenizer": {"vocab_size": 300, "max_length": 16}, "model": MODEL, **settings}
    )
    tokenizer = train_tokenizer(run.tokenizer, TEXTS * 4, for_targets=run.task == "seq2seq")
    size, length, labels = tokenizer.get_vocab_size(), run.tokenizer.max_length, ["low", "mid", "high"]
    torch.manual_seed(0)
    model: torch.nn.Module = TransformerClassifier(run.model, size, 3, length)
    if run.task == "seq2seq":
        model, labels = Seq2SeqTransformer(run.model, size, size, length, True), []
    thresholds = {"low": 0.0, "mid": 0.3, "high": 1.0} if run.task == "multilabel" else None
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


def counts(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


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


TXCLF = [sys.executable, "-m", "txclf"]


def _line(pid: int, parents: dict[int, int]) -> Sequence[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found
