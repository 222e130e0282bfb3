"""Measure SetFit on the rows that `few_shot.py` draws, from the same encoder and seeds.

    python benchmarks/few_shot_setfit.py --model FOLDER --train train.parquet --score test.parquet --rows 8 --seeds 3

Needs `setfit` and a version of Transformers that it runs on, in an environment of its own. Its settings are those of
the paper (arXiv:2209.11055): 20 pairs of each kind and row, batches of 16 pairs, one epoch, a logistic regression.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the sentence encoder")
    parser.add_argument("--train", required=True, help="Parquet file with the columns `text` and `label`")
    parser.add_argument("--score", required=True, help="Parquet file to score")
    parser.add_argument("--rows", type=int, nargs="+", default=[8], help="rows of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for count in options.rows:
        found = [one_seed(options, count, seed) for seed in range(options.seeds)]
        record = {"rows": count, "accuracy": [one for one, _ in found], "seconds": [each for _, each in found]}
        print(json.dumps({**record, "mean_accuracy": float(np.mean(record["accuracy"]))}), flush=True)


def one_seed(options: argparse.Namespace, count: int, seed: int) -> tuple[float, float]:
    """Return the accuracy and the seconds of training on `count` rows of each class."""
    train, scored = (
        pq.read_table(path).select(["text", "label"]).to_pandas() for path in (options.train, options.score)
    )
    labels = train["label"].to_numpy()
    order = np.random.default_rng(seed).permutation(np.arange(len(train)))  # as few_shot.py draws without --holdout
    drawn = np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])
    names, ids = np.unique(labels, return_inverse=True)
    rows = Dataset.from_dict({"text": train["text"].to_numpy()[drawn].tolist(), "label": ids[drawn].tolist()})
    model = SetFitModel.from_pretrained(options.model)
    model.model_body.max_seq_length = 96
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            batch_size=16,
            num_epochs=1,
            num_iterations=20,
            seed=seed,
            save_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        start = time.time()
        Trainer(model=model, args=settings, train_dataset=rows).train()
    seconds = time.time() - start
    found = model.predict(scored["text"].tolist(), batch_size=64, as_numpy=True, show_progress_bar=False)
    return float((names[np.asarray(found)] == scored["label"].to_numpy()).mean()), seconds


if __name__ == "__main__":
    main()
