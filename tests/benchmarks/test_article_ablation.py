"""The article's classifier in benchmarks/article_ablation.py has the faults that it is said to have, and loses them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/article_ablation.py"


@pytest.fixture(scope="module")
def ablation() -> Any:
    spec = importlib.util.spec_from_file_location("article_ablation", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_article_rungs_depend_on_their_settings(ablation: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (3, 7), generator=generator)
    others = torch.cat([ids[:1], torch.randint(1, 40, (2, 7), generator=generator)])
    mask = torch.ones(3, 7, dtype=torch.bool)
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    inside = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    for number, rung in enumerate(ablation.RUNGS[:-1]):
        torch.manual_seed(0)
        model = ablation.Article(40, number, 16).eval()
        with torch.no_grad():
            logits, among_others, with_padding = model(ids, mask), model(others, mask), model(padded, inside)
            by_train = model.train()(ids, mask)
        own_row = torch.allclose(logits[0], among_others[0], atol=1e-5)
        assert own_row == (number >= ablation.RUNGS.index("batch axis")), rung
        no_padding = torch.allclose(logits, with_padding, atol=1e-5)
        assert no_padding == (number >= ablation.RUNGS.index("masked mean")), rung
        assert torch.allclose(logits, by_train, atol=1e-5)  # dropout 0


def test_article_benchmark_runs(tmp_path: Path, ablation: Any) -> None:
    texts = [f"film {number % 7} was {('good', 'bad')[number % 2]} , they say" for number in range(120)]
    pq.write_table(
        pa.table({"text": texts, "label": ["np"[number % 2] for number in range(120)]}), tmp_path / "a.parquet"
    )
    out = tmp_path / "rows.jsonl"
    words = ["--train", "a.parquet", "--test", "a.parquet", "--rows", "90", "--valid-rows", "30", "--epochs", "1"]
    subprocess.run([sys.executable, SCRIPT, *words, "--out", out], check=True, cwd=tmp_path, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["rung"] for row in rows] == ablation.RUNGS
    assert {(row["train_rows"], row["test_rows"], row["steps"]) for row in rows} == {(90, 120, 3)}
    assert all(row["valid_accuracy_by_train"] == row["valid_accuracy"][-1] for row in rows)
