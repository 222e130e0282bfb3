"""Tiny runs: their run files, training them, and what they logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute
from txclf.data.prepare import prepare
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import RunSummary, check_folder, train

TINY = [
    "tokenizer.vocab_size=300",
    "tokenizer.max_length=16",
    "tokenizer.min_frequency=1",
    "model.num_layers=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.intermediate_size=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.learning_rate=3e-3",
    "train.log_every_steps=1",
    "seed=1",
    "model.ngrams=false",  # the answers are those of the network
    "train.precision=fp32",  # `auto` is bf16 on some CPUs
]


def tiny(folder: Path, data: str, *words: str) -> RunConfig:
    return run_config.load(None, [*TINY, f"data.train={data}", f"storage={folder}", *words])


def prepare_here(run: RunConfig) -> str:
    """Prepare without Ray, which takes seconds more for the same folder."""
    return prepare(run.model_copy(update={"compute": Compute()}))


def go_on(progress: Progress) -> bool:
    return False


def lines(run: RunConfig) -> list[dict[str, Any]]:
    """Return the lines of the log without their timings."""
    clocked = ("tokens_per_second", "data_share")
    log = [json.loads(line) for line in Path(run.run_folder, "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clocked} for line in log]


def losses(run: RunConfig) -> list[Any]:
    return [line["train_loss"] for line in lines(run) if "train_loss" in line]


def trained(folder: Path, data: str, *words: str) -> tuple[RunConfig, RunSummary]:
    run = tiny(folder, data, *words)
    check_folder(run, resume=False)
    return run, train(run, prepare_here(run), go_on)


def stopped_at(run: RunConfig, step: int) -> None:
    with pytest.raises(Interrupted):
        train(run, prepare_here(run), lambda progress: progress.step >= step)
