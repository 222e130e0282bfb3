"""The demo command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.helpers.command import txclf
from txclf.cli import demo
from txclf.config import run_config
from txclf.core.errors import ConfigError


def test_make_run_reads_the_corpus_that_it_wrote(tmp_path: Path) -> None:
    run = demo.make_run(str(tmp_path))
    for paths in (run.data.train, run.data.valid, run.data.test):
        assert paths is not None
        assert all(Path(path).is_file() and Path(path).is_relative_to(tmp_path / "corpus") for path in paths)
    assert run.run_folder == f"{tmp_path}/run"


def test_require_free_keeps_what_no_demo_has_made(tmp_path: Path) -> None:
    demo.require_free(str(tmp_path))
    run = demo.make_run(str(tmp_path))
    demo.require_free(str(tmp_path))  # of a demo that was interrupted
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.yaml").write_text(run_config.dump(run))
    demo.require_free(str(tmp_path))
    for name, content in (("run/run.yaml", "data: {train: mine.csv}\n"), ("corpus/train.jsonl", '{"text": "mine"}\n')):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match="holds a run or a corpus that no demo has made"):
            demo.require_free(str(tmp_path))
        (tmp_path / name).write_text(before)


def test_demo_prints_scores_baselines_and_next_commands(tmp_path: Path) -> None:
    done = txclf(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    for text in ("n-gram linear model", "majority class", "macro F1", "Five test rows", "Try next"):
        assert text in done.stdout
    metrics = json.loads((tmp_path / "runs/demo/run/metrics.json").read_text())
    assert metrics["accuracy"] > metrics["majority"]["accuracy"] + 0.2
    assert metrics["rows"] == sum(score["support"] for score in metrics["per_class"].values()) > 300
    assert 0.3 < metrics["baseline"]["accuracy"] < 1.0
    following = re.findall(r"^  txclf (predict .*)$", done.stdout, flags=re.MULTILINE)
    assert txclf(tmp_path, *following[0].split()).returncode == 0
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == metrics["rows"]
