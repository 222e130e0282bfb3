"""Measure one sample of the cost of a search: seconds from the start of the process to its end, on prepared data.

    .venv/bin/python benchmarks/tuning.py VARIANT RUN.yaml [key=value …]

Prints one line of JSON. The variants:

    tune    `txclf tune`, every trial to its end
    serial  the same trials one after another in one process, on all cores, without Ray
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

from txclf.config import run_config
from txclf.data.prepare import prepare


def main() -> None:
    variant, run_file, *words = sys.argv[1:]
    name = f"bench-{uuid.uuid4().hex[:8]}"
    words += [f"name={name}", "tune.scheduler.kind=fifo"]
    run = run_config.load(run_file, words)
    if variant == "inner":
        serial(run_file, words)
        return
    prepare(run)
    command = {
        "tune": [sys.executable, "-m", "txclf", "tune", run_file, *words],
        "serial": [sys.executable, __file__, "inner", run_file, *words],
    }[variant]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    shutil.rmtree(Path(run.storage, name), ignore_errors=True)
    print(json.dumps({"value": seconds}))


def serial(run_file: str, words: list[str]) -> None:
    from txclf.artifacts import trials
    from txclf.training.train import train

    run = run_config.load(run_file, words)
    prepared = prepare(run)
    for number in range(run.tune.total):
        train(trials.run_of(run, number, trials.draw(run, number)), prepared, lambda progress: False)


if __name__ == "__main__":
    main()
