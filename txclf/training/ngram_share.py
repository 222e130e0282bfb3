"""The linear model on n-grams that a run trains on its rows, and its share in the answers of the bundle.

It is trained after the network, on the first rows of the training split, and chosen on the validation rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.config.tasks import TASKS
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
    by_macro_f1 = run.train.monitor == "valid_f1_macro"
    choice, texts = _chosen(prepared, run.task, len(labels), run.tokenizer.lowercase, by_macro_f1)
    blend = fitting.share(choice, texts, logits, labels, by_macro_f1)
    return Blended(blend, blend.blended(logits, blend.scores(texts))) if blend else None


@lru_cache(maxsize=1)
def _chosen(
    prepared: str, task: str, valid_rows: int, lowercase: bool, by_macro_f1: bool
) -> tuple[fitting.Choice, list[str]]:
    """Return the linear model that is best on the first validation rows, and their texts.

    The trials of a search that run in one process, one after the other, share it.
    """
    manifest, spec = shards.load_manifest(prepared), TASKS[task]
    num_labels = len(manifest.labels)

    def rows(split: str, count: int) -> tuple[list[str], Labels]:
        table = pa.concat_tables(shards.first_rows(prepared, manifest, split, ["text", spec.shard_column], count))
        if spec.is_multilabel:
            return table["text"].to_pylist(), LabelSets.from_tables([table]).matrix(num_labels)
        return table["text"].to_pylist(), table[spec.shard_column].to_numpy()

    valid = rows("valid", valid_rows)
    choice = fitting.choose(
        *rows("train", fitting.MAX_ROWS), *valid, num_labels=num_labels, lowercase=lowercase, by_macro_f1=by_macro_f1
    )
    return choice, valid[0]
