"""The command that shows all steps on a small corpus: demo."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from txclf.cli import lines, results, train
from txclf.cli.commands import Commands

if TYPE_CHECKING:
    from txclf.config.run_config import RunConfig

PREDICTIONS = 5
"""Rows of the table of predictions."""
TEXT_WIDTH = 60
"""Characters of a text in that table."""

commands = Commands()


@commands.command()
def demo(
    folder: Annotated[str, typer.Option("--folder", help="Folder for all files of the demo.")] = "runs/demo",
) -> None:
    """Prepare, train, evaluate and predict on a small corpus made of Python's own source code."""
    import shutil

    started = time.time()
    require_free(folder)
    run = make_run(folder)
    lines.out(f"made a corpus of Python functions, each labelled with its package: {folder}/corpus")
    if os.path.exists(os.path.join(run.run_folder, "run.yaml")):
        shutil.rmtree(run.run_folder)  # of an earlier demo
    train.train_run(run, resume=False, started=started, with_report=False)
    train.evaluate_run(run.run_folder)
    results.write_report(run.run_folder)
    print_predictions(run)
    lines.out(
        f"""
Files in {folder}:
  corpus/             the data (train.jsonl, valid.jsonl, test.jsonl)
  run/run.yaml        the run file
  run/metrics.jsonl   the learning curves
  run/metrics.json    the test scores
  run/report.html     the report, for a browser
  run/model           the model, for `Classifier.load` and `txclf predict`
Try next:
  txclf predict {folder}/run/model {folder}/corpus/test.jsonl --out predictions.csv
  txclf train {folder}/run/run.yaml name=wider model.hidden_size=128
  txclf train {folder}/run/run.yaml name=ray compute.workers=2 compute.cpus_per_worker=0.5
  tensorboard --logdir {folder}"""
    )


def require_free(folder: str) -> None:
    """Raise `ConfigError` if a folder holds a run or a corpus that no demo has made."""
    from txclf.config import run_config
    from txclf.core import storage
    from txclf.core.errors import ConfigError

    run_file, corpus = os.path.join(folder, "run", "run.yaml"), os.path.join(folder, "corpus", "train.jsonl")
    is_ours = True
    if os.path.isfile(run_file):
        is_ours = tuple(run_config.load(run_file).data.train or ()) == (storage.absolute(corpus),)
    if os.path.isfile(corpus):
        with open(corpus, encoding="utf-8", errors="replace") as file:
            is_ours &= re.fullmatch(r'{"text": .*, "label": "\w+", "file": ".*"}\n', file.readline()) is not None
    if not is_ours:
        raise ConfigError(f"`{folder}` holds a run or a corpus that no demo has made. Choose another --folder.")


def make_run(folder: str) -> RunConfig:
    """Write the corpus to `folder`/corpus and return the run that trains on it."""
    from txclf.config import run_config
    from txclf.data import demo_corpus

    files = demo_corpus.write_corpus(os.path.join(folder, "corpus"))
    return run_config.parse(
        {
            "name": "run",
            "storage": folder,
            "data": {split: os.path.abspath(path) for split, path in files.items()},
            "tokenizer": {"vocab_size": 4000, "max_length": 192, "lowercase": False},
            "model": {"num_layers": 1, "hidden_size": 96, "num_heads": 4, "intermediate_size": 192},
            "train": {
                "epochs": 5,
                "batch_size": 32,
                "learning_rate": 3e-3,
                "token_dropout": 0.3,
                "monitor": "valid_accuracy",
            },
        },
        "demo",
    )


def print_predictions(run: RunConfig) -> None:
    """Print the first test rows with the model's predictions."""
    from txclf import Classifier
    from txclf.cli import console
    from txclf.core import storage
    from txclf.data import shards

    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    manifest = shards.load_manifest(prepared)
    rows = shards.read_split(prepared, manifest, "test", ["text", "label"]).slice(0, PREDICTIONS).to_pylist()
    predictions = Classifier.load(storage.join(run.run_folder, "model"))([row["text"] for row in rows])
    console.table(
        "Five test rows",
        ["text", "label", "predicted", "probability"],
        [
            [
                " ".join(row["text"].split())[:TEXT_WIDTH],
                manifest.labels[row["label"]],
                prediction.label,
                f"{prediction.probability:.2f}",
            ]
            for row, prediction in zip(rows, predictions, strict=True)
        ],
    )
