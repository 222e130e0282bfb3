"""Measure how training shares the CPUs with another program: its rate alone, and next to processes that never rest.

    .venv/bin/python benchmarks/sharing.py RUN.yaml [key=value …] [--busy 1] [--times 5]

Each sample trains in a process of its own, alternately alone and next to `--busy` others; afterwards again with all of
OpenMP's threads asleep while they wait. Prints tokens per second and the share of the median rate alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from txclf.config import run_config
from txclf.data.prepare import prepare

WAITING: dict[str, dict[str, str]] = {"txclf": {}, "always asleep": {"OMP_WAIT_POLICY": "passive"}}


@contextmanager
def busy(processes: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def tokens_per_second(run_file: str, words: list[str], settings: dict[str, str]) -> float:
    words = [*words, f"name=bench-{uuid.uuid4().hex[:8]}"]
    run = run_config.load(run_file, words)
    prepare(run)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "txclf", "train", run_file, *words]
    subprocess.run(command, env=environment | settings, check=True, capture_output=True)
    rate = json.loads(Path(run.run_folder, "summary.json").read_text())["tokens_per_second"]
    shutil.rmtree(run.run_folder)
    return float(rate)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_file")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    alone = 0.0
    for waiting, settings in WAITING.items():
        rates: dict[int, list[float]] = {0: [], options.busy: []}
        for _ in range(options.times):
            for processes, found in rates.items():
                with busy(processes):
                    found.append(tokens_per_second(options.run_file, options.words, settings))
        alone = alone or statistics.median(rates[0])
        for processes, found in rates.items():
            shares = ", ".join(f"{rate / alone:.2f}" for rate in found)
            listed = ", ".join(f"{rate:,.0f}" for rate in found)
            print(f"{waiting}, {processes} busy: {listed} tokens/s; share {shares}", flush=True)


if __name__ == "__main__":
    main()
