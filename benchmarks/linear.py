"""Score the linear model on n-grams alone on the rows of a run: the score that a network has to beat.

    .venv/bin/python benchmarks/linear.py RUN.yaml [key=value …]

The rows are split as `txclf train` splits them. Features and the cost of errors are chosen on the validation rows, for
`task: multilabel` the thresholds too, and the test rows are scored once, as `txclf evaluate` does. Prints one line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time

import numpy as np

from txclf.config import run_config
from txclf.data import shards
from txclf.data.labels import LabelSets
from txclf.data.prepare import prepare
from txclf.evaluation import baselines
from txclf.inference.classifier import sigmoid
from txclf.metrics import multiclass, multilabel, thresholds
from txclf.ngrams import fitting


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="linear-") as folder:
        run = run_config.load(options.run_file, [*options.overrides, f"storage={folder}", "model.pretrained=null"])
        prepared = prepare(run)
        manifest = shards.load_manifest(prepared)
        num_labels, column, parts = len(manifest.labels), run.task_spec.shard_column, []
        for split in ("train", "valid", "test"):
            table = shards.read_split(prepared, manifest, split, ["text", column])
            is_multilabel = run.task_spec.is_multilabel
            labels = LabelSets.from_tables([table]).matrix(num_labels) if is_multilabel else table[column].to_numpy()
            parts.append(baselines.Rows(table["text"].to_pylist(), labels))
    train, valid, test = parts
    start = time.monotonic()
    choice = fitting.choose(train.texts, train.labels, valid.texts, valid.labels, num_labels=num_labels)
    found = choice.model.logits([*valid.texts, *test.texts]) / np.float32(choice.model.temperature)
    seconds = round(time.monotonic() - start, 2)
    valid_logits, logits = np.split(found, [len(valid.texts)])
    if run.task_spec.is_multilabel:
        limits = np.array(thresholds.choose(valid_logits, valid.labels.astype(np.bool_)), np.float32)
        scores = multilabel.short_scores(sigmoid(logits) >= limits, test.labels.astype(np.bool_))
    else:
        scores = multiclass.short_scores(logits.argmax(axis=1), test.labels.astype(np.int64), num_labels)
    tried = [candidate._asdict() for candidate in choice.candidates]
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    about = {"train_rows": choice.train_rows, "seconds": seconds, "peak_mb": megabytes}
    print(json.dumps({**scores, **about, "candidates": tried}))


if __name__ == "__main__":
    main()
