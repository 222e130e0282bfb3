"""Tests that run the Python code of the pages."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.docs import PAGES, ROOT, blocks
from txclf.config import yaml_text

PYTHON_PAGE = ROOT / "docs/how-to/python.md"
LIGHTNING_PAGE = ROOT / "docs/how-to/lightning.md"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make a folder with the files that the pages name, 120 rows in all, and the run file `mine.yaml`."""
    generator = random.Random(0)
    words = {"good": ["fine", "sunny", "glad", "warm"], "bad": ["grim", "rain", "sad", "cold"]}
    rows = [
        {"text": " ".join(generator.choices(words[label], k=6)) + f" {number}", "label": label}
        for number in range(60)
        for label in words
    ]
    for name, some in (("train", rows[:100]), ("test", rows[100:]), ("new", rows[:5])):
        _write(tmp_path / f"{name}.csv", some)
    _write(tmp_path / "pairs.csv", [{"text": row["text"], "answer": row["label"]} for row in rows])
    settings = {
        "data": {"train": "train.csv", "test": "test.csv"},
        "tokenizer": {"vocab_size": 300, "max_length": 32},
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
        "train": {"epochs": 1, "batch_size": 16},
    }
    (tmp_path / "mine.yaml").write_text(yaml_text.written(settings))
    return tmp_path


BEFORE = """import txclf
txclf.train("mine.yaml", ["name=mine"])
"""


def _uses_ray(block: str) -> bool:
    return "compute.workers" in block or "txclf.tune(" in block


def test_the_python_page_runs(data: Path) -> None:
    """Run its blocks in one process, in order, without those that use Ray."""
    shown = [text for text in blocks(PYTHON_PAGE, "python") if not _uses_ray(text)]
    assert len(shown) > 7
    output = _run([BEFORE, *shown], data)
    assert "2 problems" in output  # the error that the page shows
    assert "finished" in output  # the state of the run, by `inspect`
    assert (data / "predictions.parquet").exists()


def test_the_lightning_page_runs(data: Path) -> None:
    """Run its blocks in one process, in order, and compare the output that the page shows."""
    quiet = "import warnings\nwarnings.simplefilter('ignore')"
    output = _run([quiet, *blocks(LIGHTNING_PAGE, "python")], data)
    assert blocks(LIGHTNING_PAGE, "text")[0] in output
    assert list(data.glob("checkpoints/*.ckpt"))


@pytest.mark.faults
def test_the_python_page_runs_on_ray(data: Path) -> None:
    """Run all its blocks: Ray starts workers or trials several times."""
    _run([BEFORE, *blocks(PYTHON_PAGE, "python")], data)
    assert (data / "runs/search/search.json").exists()
    assert (data / "runs/on-ray/summary.json").exists()


def _run(parts: list[str], folder: Path) -> str:
    (folder / "page.py").write_text("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_code_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")
