"""Runs and searches for the reports, some with hostile names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.helpers.files import write_csv
from tests.helpers.runs import TINY, go_on
from txclf.artifacts import trials
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data.prepare import prepare
from txclf.training.train import train

HOSTILE = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "<!--<script>",
    "{{ 7 * 7 }} ${alert(1)} `x` ]]>",
    "\u2028 \u2029 &lt;b&gt; \" ' \\",
]


LABELS = ["</script><img src=x onerror=\"document.title = 'taken'\">", "<b>bold</b>", "plain"]


def hostile_run(folder: Path, *words: str) -> RunConfig:
    """A trained run whose texts, labels and file names are markup."""
    rows = [
        (f"{HOSTILE[number % len(HOSTILE)]} word{number % 3} {number}", LABELS[number % 3]) for number in range(240)
    ]
    draw = np.random.default_rng(0)
    for number in draw.choice(240, 60, replace=False).tolist():  # some mistakes to show
        rows[number] = (rows[number][0], LABELS[int(draw.integers(3))])
    data = write_csv(folder / "<b>train.csv", rows)
    words = (*TINY, f"data.train={data}", f"data.test={data}", f"storage={folder}/runs", "name=hostile", *words)
    run = run_config.load(None, words)
    train(run, prepare(run), go_on)
    return run


def search_folder(folder: Path, count: int = 6) -> RunConfig:
    """A search as it lies on storage, with trials that some scheduler stopped."""
    space = {
        "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
        "model.pooling": {"choice": ["mean", "max"]},
    }
    run = run_config.parse(
        {"name": "search", "storage": str(folder), "tune": {"space": space, "metric": "valid_accuracy"}}, "test"
    )
    storage.write_bytes(storage.join(run.run_folder, "run.yaml"), run_config.dump(run).encode())
    for number in range(count):
        rate = 10 ** (-4 + number / 3)
        epochs = 1 if number % 2 else 3
        trial = trials.Trial(
            number=number,
            settings={"train.learning_rate": rate, "model.pooling": ["mean", "max"][number % 2]},
            state="stopped" if number % 2 else "finished",
            reason=HOSTILE[1] if number == 1 else "",
        )
        trials.write(run.run_folder, trial)
        lines = [
            {"step": 10 * e, "epoch": float(e), "valid_loss": 1.0, "valid_accuracy": 0.5 + number / 20 + e / 100}
            for e in range(1, epochs + 1)
        ]
        path = Path(trials.folder(run.run_folder, number), "metrics.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
