"""Chunks of the rows to score, and their scores joined in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import trained
from txclf import Classifier
from txclf.data import shards, shuffle_windows, sources
from txclf.evaluation import scoring
from txclf.evaluation.scoring import ScoringPlan
from txclf.inference.seq2seq import TeacherForced


def plan_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *, with_text: bool = False) -> ScoringPlan:
    """Return the plan of a run whose test shards have row groups of 16 rows."""
    for module in (shards, shuffle_windows):
        monkeypatch.setattr(module, "GROUP_ROWS", 16)
    files = [write_csv(folder / f"{name}.csv", make_rows(rows, seed=rows)) for name, rows in (("a", 122), ("b", 43))]
    run, summary = trained(folder / "runs", files[0], f"data.test={files[1]}", "train.epochs=1")
    manifest = shards.load_manifest(summary.prepared)
    return ScoringPlan(
        run=run,
        model=f"{run.run_folder}/model",
        prepared=summary.prepared,
        sources=manifest.splits["test"].shards,
        with_text=with_text,
    )


def test_score_here_reads_row_groups_and_equals_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, monkeypatch, with_text=True)
    parts = list(scoring.score_here(plan))
    assert [part.answers.num_rows for part in parts] == [16, 16, 11]
    rows = scoring.joined(reversed(parts))
    manifest = shards.load_manifest(plan.prepared)
    whole = shards.read_split(plan.prepared, manifest, "test", ["input_ids", "label", "text"])
    classifier = Classifier.load(plan.model)
    np.testing.assert_allclose(rows.logits, classifier.logits(classifier.rows([whole])), rtol=1e-5, atol=1e-6)
    assert rows.answers.to_pydict() == whole.select(["label", "text"]).to_pydict()


def test_chunks_of_files_give_the_same_scores_as_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, monkeypatch, with_text=True)
    files = ScoringPlan(
        run=plan.run,
        model=plan.model,
        prepared=plan.prepared,
        sources=sources.find_sources([f"{tmp_path}/b.csv"]),
        with_text=True,
    )
    here, there = scoring.joined(scoring.score_here(plan)), scoring.joined(scoring.score_here(files))
    assert here.answers.column_names == there.answers.column_names
    one = sorted(zip(here.answers["text"].to_pylist(), here.logits.tolist(), strict=True))
    two = sorted(zip(there.answers["text"].to_pylist(), there.logits.tolist(), strict=True))
    assert [text for text, _ in one] == [text for text, _ in two]
    np.testing.assert_allclose([row for _, row in one], [row for _, row in two], rtol=1e-5, atol=1e-6)


def test_joined_sums_the_scores_of_target_tokens() -> None:
    answers = pa.table({"target": ["a"]})
    empty = np.empty((0, 0), np.float32)
    parts = [
        scoring.Part(0, number, answers, empty, [str(number)], TeacherForced(0.5, 1, 2, 0, 1), 1.0, [])
        for number in (1, 0)
    ]
    rows = scoring.joined(parts)
    assert (rows.outputs, rows.seconds, rows.forced) == (["0", "1"], 2.0, TeacherForced(1.0, 2, 4, 0, 2))
    assert rows.forced.scores()["token_accuracy"] == 0.5
