"""How fast `txclf serve` answers: requests a second and latencies for 1, 8 and 64 clients, beside the bare model.

    python benchmarks/serve.py runs/agnews/model rows.csv --out serve.json
    python benchmarks/serve.py runs/agnews/model rows.csv --out serve.json -- --replicas 0

Each client sends one text at a time over a connection that it keeps, on loopback, and waits for the answer. The clients
live in a process of their own and share this machine's cores with what they measure. The bare model answers one text at
a time and 64 at a time in this process, on as many threads as a replica. What follows `--` goes to `txclf serve`.
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
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--clients", nargs=2, metavar=("URL", "COUNT"), help=argparse.SUPPRESS)
    words = sys.argv[1:]
    extra = words[words.index("--") + 1 :] if "--" in words else []
    known = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    with open(known.rows, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in itertools.islice(csv.DictReader(file), 2000)]
    if known.clients:
        url, count = known.clients
        print(json.dumps(asyncio.run(load(url, int(count), texts, known.seconds))))
        return

    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before",
        "model": known.model,
        "serve": extra,
        "seconds": known.seconds,
        "bare": {str(size): bare(known.model, texts, size, known.seconds) for size in (1, 64)},
        "served": {},
    }
    with served(known.model, extra) as url:
        for count in CLIENTS:
            command = [sys.executable, __file__, known.model, known.rows, "--out", "-"]
            command += ["--seconds", str(known.seconds), "--clients", url, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found["served"][str(count)] = json.loads(done.stdout)
    part = Path(f"{known.out}.part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.rename(known.out)
    print(json.dumps(found, indent=2))


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    """Of one text each; the milliseconds by nearest rank."""
    ordered = sorted(latencies)
    told = {
        f"p{share}_ms": 1000 * ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in (50, 95, 99)
    }
    return {"requests": len(ordered), "requests_per_second": len(ordered) / seconds} | told


def bare(model: str, texts: list[str], size: int, seconds: float) -> dict[str, float]:
    """The model alone, `size` texts a call. Requests are calls; `texts_per_second` counts texts."""
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
    told = summary(latencies, time.perf_counter() - start)
    return {**told, "texts_per_second": told["requests_per_second"] * size}


class served:
    """`txclf serve` for the time of a block, by its address."""

    def __init__(self, model: str, words: list[str]) -> None:
        command = [sys.executable, "-m", "txclf", "serve", model, "--port", "0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        found = re.search(r"at (http://\S+) ", self.process.stdout.readline())
        if not found:
            raise SystemExit("txclf serve did not start")
        return found[1]

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=120)


async def load(url: str, count: int, texts: list[str], seconds: float) -> dict[str, float]:
    """Clients that ask as fast as they are answered; the first fifth of the time does not count."""
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
