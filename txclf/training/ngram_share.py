"""The linear model on n-grams that a run trains on its rows, and its share in the answers of the bundle.

It is trained after the network, on the first rows of the training split, and chosen on the validation rows.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.labels import LabelSets
from txclf.metrics.calibration import Labels
from txclf.ngrams import fitting
from txclf.ngrams.blend import Blend
from txclf.ngrams.linear import Floats


class Blended(NamedTuple):
    """Blend of a network and a linear model."""

    blend: Blend
    logits: Floats
    """Logits (rows, labels) of both together for the validation rows."""


def fitted(run: RunConfig, prepared: str, logits: Floats, labels: Labels) -> Blended | None:
    """Train a linear model and return its blend with the network; None if the network is better alone.

    `logits` (rows, labels) and `labels` are those of the network for the first validation rows.
    """
    manifest, column = shards.load_manifest(prepared), run.task_spec.shard_column
    num_labels = len(manifest.labels)
    train = pa.concat_tables(shards.first_rows(prepared, manifest, "train", ["text", column], fitting.MAX_ROWS))
    if run.task_spec.is_multilabel:
        targets: Labels = LabelSets.from_tables([train]).matrix(num_labels)
    else:
        targets = train[column].to_numpy()
    texts = train["text"].to_pylist()
    valid = pa.concat_tables(shards.first_rows(prepared, manifest, "valid", ["text"], len(labels)))["text"].to_pylist()
    by_macro_f1 = run.train.monitor == "valid_f1_macro"
    choice = fitting.choose(
        *(texts, targets, valid, labels),
        num_labels=num_labels,
        lowercase=run.tokenizer.lowercase,
        by_macro_f1=by_macro_f1,
    )
    blend = fitting.share(choice, valid, logits, labels, by_macro_f1)
    return Blended(blend, blend.blended(logits, blend.scores(valid))) if blend else None
