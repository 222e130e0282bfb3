"""Measure one sample of the time from the command `txclf train` to its first optimizer step, on prepared data.

    .venv/bin/python benchmarks/startup.py RUN.yaml [key=value …]

Prints one line of JSON: `value` in seconds. The run is stopped after that.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from txclf.config import run_config
from txclf.data.prepare import prepare


def main() -> None:
    run_file, *words = sys.argv[1:]
    words.append(f"name=bench-{uuid.uuid4().hex[:8]}")
    run = run_config.load(run_file, words)
    prepare(run)
    attempts = Path(run.run_folder, "attempts.jsonl")
    started = time.time()
    command = [sys.executable, "-m", "txclf", "train", run_file, *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not attempts.exists() or not attempts.read_text():
        if process.poll() is not None:
            sys.exit(process.communicate()[1])
        time.sleep(0.02)
    began = json.loads(attempts.read_text().splitlines()[0])["time"]
    process.send_signal(signal.SIGINT)
    process.communicate()
    shutil.rmtree(run.run_folder)
    print(json.dumps({"value": began - started}))


if __name__ == "__main__":
    main()
