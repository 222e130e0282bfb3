"""Train the network on what the linear model on n-grams leaves, instead of blending the two after training.

    .venv/bin/python benchmarks/residual_logits.py [key=value …] [--seeds 1,2,3]

    .venv/bin/python benchmarks/residual_logits.py data.train=train.parquet

The network learns the logits that, added to the calibrated log-probabilities of the linear model, give the labels. For
a training row they come from a linear model that has not seen it (five folds); for a validation row from all training
rows. Prints one line of JSON per seed with the validation rows' loss and accuracy of both ways. The test rows are not
read. For `task: classify`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

import txclf
from txclf.artifacts import metric_logger
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import shards
from txclf.data.batches import TEACHER
from txclf.data.sidecars import RowGroup, Sidecar
from txclf.ngrams import fitting
from txclf.ngrams.blend import calibrated
from txclf.training import worker
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.module import ClassifierModule

FOLDS = 5
Floats = npt.NDArray[np.float32]


class ResidualModule(ClassifierModule):
    """Classifier whose logits are added to those of the linear model, which are a column of the rows."""

    def logits(self, batch: Any, shift_WTD: Tensor | None = None) -> Tensor:
        """Return the logits (B, C) of both together."""
        return super().logits(batch, shift_WTD) + batch["teacher_logits"]

    def summed_loss(self, batch: Any, shift_BTD: Tensor | None = None) -> Tensor:
        """Return the loss of the labels, summed over the rows."""
        return self.training_loss(self.logits(batch, shift_BTD), batch["labels"])


def scores_of_folds(run: RunConfig, prepared: str) -> dict[str, Floats]:
    """Return the log-probabilities (rows, labels) of linear models for the training and the validation rows."""
    manifest = shards.load_manifest(prepared)
    train, valid = (shards.read_split(prepared, manifest, split, ["text", "label"]) for split in ("train", "valid"))
    texts, labels = np.array(train["text"].to_pylist(), object), train["label"].to_numpy()
    options = {"num_labels": len(manifest.labels), "lowercase": run.tokenizer.lowercase}
    valid_texts, valid_labels = valid["text"].to_pylist(), valid["label"].to_numpy()
    fold_of = np.random.default_rng(run.seed).integers(FOLDS, size=len(texts))
    found = np.zeros((len(texts), len(manifest.labels)), np.float32)
    for fold in range(FOLDS):
        inside = fold_of == fold
        model = fitting.choose(
            list(texts[~inside]),
            labels[~inside],
            valid_texts,
            valid_labels,
            **options,  # type: ignore[arg-type]
        ).model
        found[inside] = calibrated(model.logits(list(texts[inside])), model.temperature, False)
    model = fitting.choose(list(texts), labels, valid_texts, valid_labels, **options).model  # type: ignore[arg-type]
    return {"train": found, "valid": calibrated(model.logits(valid_texts), model.temperature, False)}


def store(prepared: str, sidecar: Sidecar, scores: dict[str, Floats]) -> None:
    """Store the scores as a column of the prepared rows."""
    manifest = shards.load_manifest(prepared)
    for split, values in scores.items():
        start = 0
        for shard in manifest.splits[split].shards:
            for number in range(len(shard.group_tokens)):
                group = RowGroup(shard, number)
                sidecar.write(prepared, group, values[start : start + group.rows])
                start += group.rows


def residual(run: RunConfig, prepared: str, labels: int) -> dict[str, float]:
    """Train on the residual and return the metrics of the best validation."""
    sidecar = Sidecar(name=f"residual-{run.seed}", column=TEACHER, width=labels, splits=("train", "valid"))
    store(prepared, sidecar, scores_of_folds(run, prepared))
    worker.MODULES["classify"] = ResidualModule
    worker.fit(WorkerConfig(run, prepared, sidecars=(sidecar,)), None, lambda progress: False, DistributedContext())
    lines = metric_logger.read(storage.join(run.run_folder, "metrics.jsonl"))
    return min((line for line in lines if "valid_loss" in line), key=lambda line: line["valid_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", default="1")
    chosen = parser.parse_intermixed_args()
    for seed in chosen.seeds.split(","):
        with tempfile.TemporaryDirectory(prefix="txclf-residual-") as folder:
            run = txclf.load_config(None, [*chosen.overrides, f"storage={folder}", f"seed={seed}"])
            summary = txclf.train(run)
            assert summary.ngrams is not None
            settled = txclf.load_config(f"{run.run_folder}/run.yaml", ["name=residual"])
            manifest = shards.load_manifest(summary.prepared)
            found = residual(settled, summary.prepared, len(manifest.labels))
            line = {
                "seed": int(seed),
                "network": {"loss": summary.ngrams.network_loss},
                "linear": {"loss": summary.ngrams.ngram_loss},
                "blended": {"loss": summary.best["valid_loss"], "accuracy": summary.best["valid_accuracy"]},
                "residual": {"loss": found["valid_loss"], "accuracy": found["valid_accuracy"]},
            }
            print(json.dumps(line), flush=True)
            worker.MODULES["classify"] = ClassifierModule


if __name__ == "__main__":
    main()
