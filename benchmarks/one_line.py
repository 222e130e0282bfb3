"""Score what a run file with nothing but its data gives: the model, its network alone, and the linear model.

    .venv/bin/python benchmarks/one_line.py [key=value …] [--seeds 1,2,3]

    .venv/bin/python benchmarks/one_line.py data.train=train.parquet data.test=test.parquet

The test rows are scored once per seed. Prints one line of JSON per seed: accuracy, or macro F1 for `task: multilabel`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import numpy as np
import torch

import txclf
from txclf.data import shards
from txclf.data.labels import LabelSets
from txclf.inference.classifier import Classifier, sigmoid
from txclf.metrics import multilabel


def network_score(model: str, prepared: str) -> float:
    """Return the score of the network of a bundle on the prepared test rows."""
    manifest = shards.load_manifest(prepared)
    classifier = Classifier.load(model).network_only()
    column = classifier.metadata.task_spec.shard_column
    table = shards.read_split(prepared, manifest, "test", ["text", column])
    logits = classifier.logits(classifier.text_rows([(text,) for text in table["text"].to_pylist()]))
    if not classifier.metadata.task_spec.is_multilabel:
        return float((logits.argmax(axis=1) == table[column].to_numpy()).mean())
    truth = LabelSets.from_tables([table]).matrix(len(manifest.labels)).astype(np.bool_)
    return multilabel.short_scores(sigmoid(logits) >= 0.5, truth)["f1_macro"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", default="1")
    chosen = parser.parse_intermixed_args()
    for seed in chosen.seeds.split(","):
        with tempfile.TemporaryDirectory(prefix="txclf-one-line-") as storage:
            run = txclf.load_config(None, [*chosen.overrides, f"storage={storage}", f"seed={seed}"])
            start = time.time()
            summary = txclf.train(run)
            seconds = time.time() - start
            metrics = txclf.evaluate(run.run_folder)
            key = "f1_macro" if run.task_spec.is_multilabel else "accuracy"
            line = {
                "seed": int(seed),
                "together": metrics[key],
                "network": network_score(f"{run.run_folder}/model", summary.prepared),
                "linear": metrics["baseline"][key],
                "weight": summary.ngrams.weight if summary.ngrams else 0.0,
                "minutes": round(seconds / 60, 2),
                "epochs": summary.epochs,
                "threads": torch.get_num_threads(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
