"""Measure fine-tuning on a few rows of each class, beside an n-gram linear model on the same rows.

    python benchmarks/few_shot.py --model FOLDER --train train.parquet --score test.parquet --rows 8 64 --seeds 5
    ... train.epochs=20 model.reinitialize_layers=1        other settings

Each seed draws other training rows and another head. The models train on all drawn rows, so nothing is chosen on them;
without further settings they are those of the recipe. `--holdout N` scores N rows of the training file that were not
drawn, for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import txclf
from txclf.core import storage
from txclf.evaluation import baselines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the run file")
    parser.add_argument("--model", required=True, help="folder of the pretrained model")
    parser.add_argument("--train", required=True, help="Parquet file with the columns `text` and `label`")
    parser.add_argument("--score", help="Parquet file to score")
    parser.add_argument("--holdout", type=int, default=0, help="rows of --train to score instead")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64], help="rows of each class")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_intermixed_args()
    table = pq.read_table(options.train).select(["text", "label"])
    held_out = np.random.default_rng(10_000).permutation(len(table))[: options.holdout]
    scored = table.take(pa.array(held_out)) if options.holdout else pq.read_table(options.score)
    for count in options.rows:
        results = [one_seed(table, held_out, scored, count, seed, options) for seed in range(options.seeds)]
        record = {"rows": count, **{key: [round(one[key], 4) for one in results] for key in results[0]}}
        for key in ("accuracy", "ngrams"):
            record[f"mean_{key}"] = round(float(np.mean(record[key])), 4)
            record[f"std_{key}"] = round(float(np.std(record[key])), 4)
        print(json.dumps(record), flush=True)


def one_seed(
    table: pa.Table, held_out: np.ndarray, scored: pa.Table, count: int, seed: int, options: argparse.Namespace
) -> dict[str, float]:
    """Train on `count` rows of each class and return the accuracies and the seconds of training."""
    labels = np.array(table["label"].to_pylist())
    order = np.setdiff1d(np.arange(len(table)), held_out)
    order = np.random.default_rng(seed).permutation(order)
    drawn = np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])
    expected = np.array(scored["label"].to_pylist())
    with tempfile.TemporaryDirectory(prefix="few-shot-") as folder:
        pq.write_table(table.take(pa.array(drawn)), os.path.join(folder, "rows.parquet"))
        settings = {
            "name": "run",
            "storage": folder,
            "seed": seed,
            "data": {"train": os.path.join(folder, "rows.parquet"), "valid_fraction": 0.3},
            "model": {"pretrained": storage.absolute(options.model)},
            "tokenizer": {"max_length": 96},
            "train": {"train_on_valid": True},
        }
        start = time.time()
        run = txclf.load_config(settings, options.overrides)
        txclf.train(run)
        seconds = time.time() - start
        model = txclf.Classifier.load(f"{run.run_folder}/model")
        probabilities = model.probabilities([(text,) for text in scored["text"].to_pylist()])
        found = np.array(model.labels)[probabilities.argmax(axis=1)]
    ids = {label: number for number, label in enumerate(model.labels)}
    texts = [table["text"][int(i)].as_py() for i in drawn]
    train = baselines.Rows(texts, np.array([ids[label] for label in labels[drawn]]))
    none = baselines.Rows([], train.labels[:0])
    linear = baselines.ngrams(train, none, scored["text"].to_pylist(), num_labels=len(ids))
    ngrams = np.array(model.labels)[linear.logits.argmax(axis=1)]
    return {
        "accuracy": float((found == expected).mean()),
        "ngrams": float((ngrams == expected).mean()),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
