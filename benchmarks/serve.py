"""Measure `txclf serve`: requests per second and latencies for 1, 8 and 64 clients, next to the bare model.

    python benchmarks/serve.py runs/agnews/model rows.csv --out serve.json
    python benchmarks/serve.py runs/agnews/model rows.csv --out serve.json -- --replicas 0

Each client sends one text at a time over a persistent loopback connection and waits for the answer. The clients run in
a process of their own and share this machine's cores with the service. The bare model answers one text at a time and 64
at a time in this process, on as many threads as a replica. Arguments after `--` go to `txclf serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import datetime
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from txclf import Classifier

CLIENTS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", help="a csv file with a column `text`")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument("--clients", nargs=2, metavar=("URL", "COUNT"), help=argparse.SUPPRESS)
    arguments = sys.argv[1:]
    serve_arguments = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    options = parser.parse_args(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    with open(options.rows, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in itertools.islice(csv.DictReader(file), 2000)]
    if options.clients:
        url, count = options.clients
        print(json.dumps(asyncio.run(load(url, int(count), texts, options.seconds))))
        return

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before",
        "model": options.model,
        "serve": serve_arguments,
        "seconds": options.seconds,
        "bare": {str(size): bare(options.model, texts, size, options.seconds) for size in (1, 64)},
        "served": {},
    }
    with served(options.model, serve_arguments) as url:
        for count in CLIENTS:
            command = [sys.executable, __file__, options.model, options.rows, "--out", "-"]
            command += ["--seconds", str(options.seconds), "--clients", url, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result["served"][str(count)] = json.loads(done.stdout)
    partial = Path(f"{options.out}.part")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.rename(options.out)
    print(json.dumps(result, indent=2))


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    """Return the rate and the latency percentiles (nearest rank, in ms) of requests of one text each."""
    ordered = sorted(latencies)
    percentiles = {
        f"p{share}_ms": 1000 * ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in (50, 95, 99)
    }
    return {"requests": len(ordered), "requests_per_second": len(ordered) / seconds} | percentiles


def bare(model: str, texts: list[str], size: int, seconds: float) -> dict[str, float]:
    """Measure the model alone with `size` texts per call; a request is a call."""
    classifier = Classifier.load(model)
    classifier.model.cpu()
    classifier.device = torch.device("cpu")
    classifier(texts[:size])
    endless = itertools.cycle(texts)
    latencies = []
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        classifier(list(itertools.islice(endless, size)))
        latencies.append(time.perf_counter() - now)
    result = summary(latencies, time.perf_counter() - start)
    return {**result, "texts_per_second": result["requests_per_second"] * size}


class served:
    """Context manager that runs `txclf serve` and returns its URL."""

    def __init__(self, model: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "txclf", "serve", model, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        url = re.search(r"at (http://\S+) ", self.process.stdout.readline())
        if not url:
            raise SystemExit("txclf serve did not start")
        return url[1]

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=120)


async def load(url: str, count: int, texts: list[str], seconds: float) -> dict[str, float]:
    """Run `count` clients without pauses and summarize their latencies; the warm-up is a fifth of `seconds`."""
    host, port = url.removeprefix("http://").split(":")
    endless = itertools.cycle(texts)
    begin = time.perf_counter() + seconds / 5
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.perf_counter() < begin + seconds:
            body = json.dumps({"text": next(endless)}).encode()
            start = time.perf_counter()
            head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(answer.decode())
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            assert length
            await reader.readexactly(int(length[1]))
            if start >= begin:
                latencies.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(count)))
    return summary(latencies, seconds)


if __name__ == "__main__":
    main()
