"""Runs and searches for reports, with markup in their texts, labels and file names; and report pages read back."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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


def hostile_run(folder: Path, *overrides: str) -> RunConfig:
    """Train a run whose texts, labels and file names are markup."""
    rows = [
        (f"{HOSTILE[number % len(HOSTILE)]} word{number % 3} {number}", LABELS[number % 3]) for number in range(240)
    ]
    draw = np.random.default_rng(0)
    for number in draw.choice(240, 60, replace=False).tolist():  # so that there are mistakes to show
        rows[number] = (rows[number][0], LABELS[int(draw.integers(3))])
    data = write_csv(folder / "<b>train.csv", rows)
    settings = (*TINY, f"data.train={data}", f"data.test={data}", f"storage={folder}/runs", "name=hostile", *overrides)
    run = run_config.load(None, settings)
    train(run, prepare(run), go_on)
    return run


def search_folder(folder: Path, count: int = 6) -> RunConfig:
    """Write the folder of an unfinished search. The scheduler stopped every second trial."""
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


def copied_run(run: RunConfig, folder: Path) -> str:
    """Copy a run folder, so that a test can change it, and return the copy."""
    return str(shutil.copytree(run.run_folder, folder / run.name))


class ReportPage(HTMLParser):
    """Tags of a report page with their attributes, its scripts and its text."""

    def __init__(self, path: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(Path(path).read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def content(self) -> dict[str, Any]:
        """Return the content that is embedded as JSON."""
        return dict(json.loads(self.scripts[0]))
