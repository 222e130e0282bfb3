"""The configuration of a worker: it can be pickled, and names the columns to read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import txclf
from tests.helpers.runs import tiny
from txclf.data.batches import PairRows, Rows, TokenRows
from txclf.data.window_reader import ScoringReader, TrainReader
from txclf.training.job import DistributedContext, WorkerConfig


def read(reader: TrainReader | ScoringReader) -> Rows:
    return reader.rows([reader.read(0)])


def test_worker_config_survives_pickle(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data)
    config = WorkerConfig(run, txclf.prepare(run), 1.5)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("classify", ("input_ids", "label")),
        ("multilabel", ("input_ids", "labels")),
        ("seq2seq", ("input_ids", "target_ids")),
    ],
)
def test_columns_are_those_of_the_task(task: str, columns: tuple[str, str]) -> None:
    assert WorkerConfig(txclf.load_config(None, [f"task={task}"]), "nowhere").columns == columns


def test_readers_give_pairs_for_seq2seq_only(tmp_path: Path, data: str, pair_data: str) -> None:
    run = tiny(tmp_path, data)
    config = WorkerConfig(run, txclf.prepare(run))
    assert isinstance(read(config.train_reader()), TokenRows)
    assert isinstance(read(config.scoring_reader("valid")), TokenRows)
    words = ["task=seq2seq", "data.text=source", f"data.train={pair_data}", f"storage={tmp_path}"]
    run = txclf.load_config(None, [*words, "tokenizer.vocab_size=300"])
    config = WorkerConfig(run, txclf.prepare(run))
    assert isinstance(read(config.train_reader()), PairRows)
    assert isinstance(read(config.scoring_reader("valid")), PairRows)


def test_manifest_of_a_run_on_validation_rows_counts_them_as_training_rows(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.train_on_valid=true")
    assert WorkerConfig(run, txclf.prepare(run)).manifest().splits["train"].rows == 300


def test_distributed_context_is_alone_by_default() -> None:
    context = DistributedContext()
    assert (context.rank, context.world_size, context.strategy, context.plugins) == (0, 1, "auto", ())
    assert context.heartbeat is not DistributedContext().heartbeat
