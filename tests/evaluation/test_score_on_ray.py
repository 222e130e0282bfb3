"""Evaluation on Ray: the same scores as in this process, with workers that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import multilabel, pairs
from tests.helpers.files import make_rows, write_csv
from tests.helpers.ray_cpus import every_cpu_taken
from tests.helpers.ray_processes import workers_of_ray
from tests.helpers.runs import go_on, trained
from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, DataError
from txclf.data import actor_pool, shards
from txclf.data.prepare import prepare
from txclf.data.sources import Source
from txclf.evaluation import scoring
from txclf.evaluation.evaluate import evaluate
from txclf.evaluation.scoring import Part, ScoringPlan
from txclf.training.train import train

TWO = Compute(workers=2)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("local_ray"),
]


def equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that two results are equal, to float tolerance and without the seconds."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            equal(found[key], value)
        elif key != "seconds":
            assert found[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value), key


def test_evaluate_on_ray_equals_one_process(tmp_path: Path) -> None:
    files = [write_csv(tmp_path / f"{name}.csv", make_rows(rows, seed=rows)) for name, rows in (("a", 150), ("b", 77))]
    run, _ = trained(tmp_path / "runs", files[0], f"data.test={files[1]}", "train.epochs=1", "data.on_bad_row=skip")
    equal(evaluate(run.run_folder, compute=TWO), evaluate(run.run_folder))
    # Two files and more than one chunk.
    rows = [*make_rows(5000, seed=3), ("no label", "unheard"), ("", "pos")]
    data = [files[1], write_csv(tmp_path / "c.csv", rows)]
    found = evaluate(run.run_folder, data, compute=TWO)
    assert (found["rows"], found["skipped"]) == (5077, 2)
    equal(found, evaluate(run.run_folder, data))
    damaged = tmp_path / "d.jsonl"
    damaged.write_text('{"m": 1}\n')
    with pytest.raises(DataError, match=r"d\.jsonl`: no column `text`") as caught:
        evaluate(run.run_folder, [files[1], str(damaged)], compute=TWO)
    assert type(caught.value) is DataError


def test_score_without_a_free_cpu_fails_in_time(tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pool, "NO_PROGRESS_TIMEOUT_S", 3)
    source = Source("/nowhere/a.csv", "csv")
    plan = ScoringPlan(run=tiny_run, model="/nowhere", prepared="/nowhere", sources=[source], with_text=False)
    with every_cpu_taken():
        start = time.monotonic()
        with pytest.raises(
            ClusterError, match=r"the evaluation made no progress on Ray for 3 s, and Ray has 0 of 3 CPUs"
        ):
            list(scoring.score_on_ray(plan, TWO))
        assert time.monotonic() - start < 30


@pytest.mark.faults
def test_evaluate_other_tasks_on_ray_equal_one_process(
    tmp_path: Path, tag_data: tuple[str, str], pair_data: str
) -> None:
    tags = multilabel.tagging(tmp_path, tag_data, "train.epochs=1")
    texts = pairs.pairs(tmp_path, pair_data, "train.epochs=1", f"data.test={pair_data}")
    for run in (tags, texts):
        train(run, prepare(run), go_on)
        equal(evaluate(run.run_folder, compute=TWO), evaluate(run.run_folder))


class Killing:
    """Kill one worker after the first part."""

    def __init__(self) -> None:
        self.killed = 0

    def __call__(self, plan: ScoringPlan, compute: Compute) -> Iterator[Part]:
        for part in SCORE(plan, compute):
            if not self.killed:
                self.killed = workers_of_ray("MapWorker")[0]
                os.kill(self.killed, signal.SIGKILL)
            yield part


SCORE = scoring.score_on_ray


@pytest.mark.faults
def test_evaluate_on_ray_survives_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        write_csv(tmp_path / f"{name}.csv", make_rows(rows, seed=rows)) for name, rows in (("a", 150), ("b", 40_000))
    ]
    run, summary = trained(tmp_path / "runs", files[0], f"data.test={files[1]}", "train.epochs=1")
    assert len(shards.load_manifest(summary.prepared).splits["test"].shards[0].group_tokens) == 5
    expected = evaluate(run.run_folder, with_baseline=False)
    killing = Killing()
    monkeypatch.setattr(scoring, "score_on_ray", killing)
    equal(evaluate(run.run_folder, with_baseline=False, compute=TWO), expected)
    assert killing.killed
