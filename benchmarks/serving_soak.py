"""Send many requests to `txclf serve` while replicas are killed and clients vanish: none may be lost.

    python benchmarks/serving_soak.py runs/agnews/model rows.csv --out soak.json --requests 100000 -- --replicas 2

Every client sends one text at a time over a loopback connection and compares the label with that of the model in this
process. Each tenth request is sent by a client that closes its connection before the answer. A request is lost if its
answer is an error other than 503, is wrong, or does not come; 503 asks the client to retry, which it does. The resident
memory of the front end is recorded over the run. Arguments after `--` go to `txclf serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import datetime
import itertools
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from txclf import Classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", help="a csv file with a column `text`")
    parser.add_argument("--out", required=True)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--kill-seconds", type=float, default=30.0, help="seconds between two kills of a replica")
    parser.add_argument("--max-seconds", type=float, default=330.0)
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    with open(options.rows, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in itertools.islice(csv.DictReader(file), 500)]
    labels = [prediction.label for prediction in Classifier.load(options.model)(texts)]
    command = [sys.executable, "-m", "txclf", "serve", options.model, "--port", "0", *arguments[end + 1 :]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = re.search(r"at http://([\d.]+):(\d+) ", process.stdout.readline())
    if not url:
        raise SystemExit("txclf serve did not start")
    soak = Soak(options, url[1], int(url[2]), list(zip(texts, labels, strict=True)), process.pid)
    try:
        asyncio.run(soak.run())
    finally:
        process.terminate()
        process.communicate(timeout=120)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "serve": arguments[end + 1 :],
        **soak.summary(),
        "exit_code": process.returncode,
    }
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    raise SystemExit(int(bool(result["lost"]) or process.returncode != 0))


class Soak:
    """Clients, kills and the measurement of memory."""

    def __init__(
        self, options: argparse.Namespace, host: str, port: int, rows: list[tuple[str, str]], server: int
    ) -> None:
        self.options, self.host, self.port, self.rows, self.server = options, host, port, rows, server
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.memory: list[float] = []
        self.sent = 0
        self.start = time.monotonic()
        self.random = random.Random(0)

    async def run(self) -> None:
        side = [asyncio.create_task(self.kill()), asyncio.create_task(self.measure())]
        await asyncio.gather(*(self.client() for _ in range(self.options.clients)))
        for task in side:
            task.cancel()
        self.memory.append(resident(self.server))

    def summary(self) -> dict[str, object]:
        seconds = time.monotonic() - self.start
        tenth = max(1, len(self.memory) // 10)
        return {
            "requests": self.sent,
            "seconds": round(seconds, 1),
            "requests_per_second": round(self.sent / seconds),
            **self.counts,
            "lost": len(self.lost),
            "first_lost": self.lost[:5],
            "front_end_mib_after_a_tenth": round(self.memory[tenth - 1]),
            "front_end_mib_at_the_end": round(self.memory[-1]),
            "front_end_mib_max": round(max(self.memory)),
        }

    async def client(self) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while self.sent < self.options.requests and time.monotonic() - self.start < self.options.max_seconds:
            self.sent += 1
            text, label = self.rows[self.sent % len(self.rows)]
            try:
                connection = connection or await asyncio.open_connection(self.host, self.port)
                if self.sent % 10 == 0:
                    await vanish(connection[1], text, self.random.random() * 0.01)
                    connection = None
                    self.counts["vanished"] += 1
                    continue
                status, body = await asyncio.wait_for(ask(*connection, text), 90)
                while status == 503:
                    self.counts["retried"] += 1
                    await asyncio.sleep(1)
                    status, body = await asyncio.wait_for(ask(*connection, text), 90)
                if status != 200 or json.loads(body)["predictions"][0]["label"] != label:
                    self.lost.append(f"{status} {body[:200]!r}")
                else:
                    self.counts["answered"] += 1
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.lost.append(repr(error))
                connection = None

    async def kill(self) -> None:
        """Kill a replica from time to time; without Ray there is none."""
        while True:
            await asyncio.sleep(self.options.kill_seconds)
            found = replicas(self.server)
            if len(found) > 1:
                os.kill(self.random.choice(found), signal.SIGKILL)
                self.counts["kills"] += 1

    async def measure(self) -> None:
        while True:
            self.memory.append(resident(self.server))
            await asyncio.sleep(1)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> tuple[int, bytes]:
    """Send a request and return the status and the body of its answer."""
    writer.write(request(text))
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


async def vanish(writer: asyncio.StreamWriter, text: str, seconds: float) -> None:
    """Send a request or half of one, and close the connection without reading the answer."""
    content = request(text)
    writer.write(content[: len(content) // 2] if seconds < 0.003 else content)
    await writer.drain()
    await asyncio.sleep(seconds)
    writer.transport.abort()


def request(text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def replicas(server: int) -> list[int]:
    """Return the process ids of the replicas below the process of `txclf serve`."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if "ServeReplica" in (path / "cmdline").read_text():
                found.append(int(path.name))

    def is_below(pid: int) -> bool:
        while pid in parents and pid != server:
            pid = parents[pid]
        return pid == server

    return [pid for pid in found if is_below(pid)]


if __name__ == "__main__":
    main()
