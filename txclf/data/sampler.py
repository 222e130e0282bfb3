"""Assignment of rows to steps and ranks, as pure functions.

The unit is the global batch: `batch_size` rows per optimizer step over all ranks. An epoch consists of shuffle windows
(`txclf.data.shuffle_windows`). The steps of one window are

    permutation of its rows, drawn from (seed, epoch, window)   rows that fill no batch are left out
      ─▶ buckets of `bucket_batches` global batches             each sorted by length and split into batches
      ─▶ the batches of a bucket in an order drawn from the same generator
      ─▶ rank r of W takes rows r, r + W, r + 2 W … of each     so batch k is about as long on every rank

With labels, the first line changes: rows are drawn so that all classes come equally often (`balanced_order`).

Only the last line depends on the number of ranks. So a step has the same rows on any number of ranks, and the position
in an epoch is one number, the step.

Shapes: S steps, G rows of a global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from txclf.config.sections import SpecialTokens, Truncation

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Layout:
    """Mapping from token rows to the sequences that a model reads."""

    window: int | None = None
    """Tokens per window; None if a row is one sequence."""
    overlap: int = 0
    """Tokens shared by neighbouring windows."""
    separator: int | None = None
    """Token between text columns; None without segment embeddings."""
    special: SpecialTokens | None = None
    """Tokens that a pretrained model expects around each sequence; None for a model from scratch."""
    multiple: int = 1
    """Batches are padded to a multiple of this, but not beyond `longest`."""
    longest: int | None = None
    """Tokens that the model reads at most, special tokens included."""

    @classmethod
    def of_model(
        cls,
        max_length: int,
        truncation: Truncation,
        special: SpecialTokens | None,
        separator: int | None,
        multiple: int = 1,
    ) -> Self:
        """Return the layout of a model that reads `max_length` tokens at once.

        `separator` is the token between text columns that have a segment embedding each, for a model from scratch.
        """
        return cls(
            window=max_length - (special.added if special else 0) if truncation.mode == "windows" else None,
            overlap=truncation.window_overlap,
            separator=special.separator[-1] if special and special.token_types else separator,
            special=special,
            multiple=multiple,
            longest=max_length,
        )

    def width(self, length: int) -> int:
        """Return the tokens that a batch is padded to whose longest sequence has `length`."""
        rounded = -(-length // self.multiple) * self.multiple
        return rounded if self.longest is None else max(length, min(rounded, self.longest))

    def counts(self, lengths: Lengths) -> Ints:
        """Return the sequences per row, from the lengths of the rows."""
        if self.window is None:
            return np.ones(len(lengths), np.int64)
        stride = self.window - self.overlap
        return 1 + np.maximum(0, -(-(lengths.astype(np.int64) - self.window) // stride))

    def spans(self, lengths: Lengths) -> tuple[Ints, Ints, Ints]:
        """Return the row, the first token within that row, and the length of each sequence.

        The last window of a row ends with the row, so no window is shorter than the others.
        """
        counts = self.counts(lengths)
        rows = np.repeat(np.arange(len(lengths)), counts)
        full = lengths.astype(np.int64)[rows]
        if self.window is None:
            return rows, np.zeros(len(rows), np.int64), full
        numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.minimum(numbers * (self.window - self.overlap), np.maximum(0, full - self.window))
        return rows, starts, np.minimum(full, self.window)


WHOLE = Layout()


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return the optimizer steps of an epoch, one per whole global batch."""
    return num_rows // batch_size


def balanced_order(labels: Int32s, size: int, generator: np.random.Generator) -> tuple[Ints, int]:
    """Return row numbers (size,) in which all classes come equally often, and the distance between copies.

    The counts of two classes differ by at most one. A class with more rows than its share contributes some of its rows,
    each once; a class with fewer rows repeats its rows in turn. The rows of every class are spread evenly. The distance
    is the approximate number of positions between two copies of a row of the rarest class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])  # one sort for any number of classes
    shares = np.full(len(classes), size // len(classes))
    shares[generator.permutation(len(classes))[: size % len(classes)]] += 1
    rows, keys = [], []
    for own, share in zip(by_class, shares, strict=True):
        rows.append(np.resize(generator.permutation(own), share))
        keys.append((np.arange(share) + generator.random(share)) / max(1, share))
    order: Ints = np.concatenate(rows)[np.argsort(np.concatenate(keys), kind="stable")]
    return order, int(counts.min()) * len(classes)


def window_batches(
    lengths: Lengths,
    batch_size: int,
    *,
    bucket_batches: int,
    seed: int,
    epoch: int,
    window: int = 0,
    labels: Int32s | None = None,
) -> Ints:
    """Return the positions, in a window of an epoch, of the rows of every global batch, (S, G).

    Each row occurs at most once, and at most G - 1 rows are left out. With `labels`, all classes of the window come
    equally often in the same number of steps, so rows of rare classes occur several times. A bucket is then at most as
    long as the distance between copies, because sorting by length would bring the copies of a row together.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch, window]))
    steps = steps_per_epoch(len(lengths), batch_size)
    if labels is None:
        order = generator.permutation(len(lengths))[: steps * batch_size]
    else:
        order, distance = balanced_order(labels, steps * batch_size, generator)
        bucket_batches = max(1, min(bucket_batches, distance // batch_size))
    batches = np.empty((steps, batch_size), np.int64)
    for start in range(0, steps, bucket_batches):
        stop = min(start + bucket_batches, steps)
        bucket = order[start * batch_size : stop * batch_size]
        by_length = bucket[np.argsort(lengths[bucket], kind="stable")].reshape(-1, batch_size)
        batches[start:stop] = by_length[generator.permutation(stop - start)]
    return batches


def rank_share(rows: Ints, rank: int, world_size: int) -> Ints:
    """Return the rows of this rank in a global batch (G,), or in each of several (S, G): every `world_size`-th."""
    return rows[..., rank::world_size]


def micro_batches(rows: Ints, count: int) -> list[Ints]:
    """Return the rows of a rank in a step, sorted by length, in `count` micro-batches of similar lengths.

    Their sizes differ by at most one row, and one is empty only if there are fewer than `count` rows.
    """
    return np.array_split(rows, count)


def scoring_batches(lengths: Lengths, batch_size: int, costs: Ints | None = None) -> Iterator[Ints]:
    """Yield all rows in batches for scoring.

    The longest rows come first, so that memory peaks in the first batch. `costs` are the sequences per row: a batch
    then has at most `batch_size` sequences, or a single row.
    """
    by_length = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(by_length):
        batch = by_length[start : start + batch_size]
        if costs is not None:
            batch = batch[: max(1, int(np.searchsorted(np.cumsum(costs[batch]), batch_size, side="right")))]
        yield batch
        start += len(batch)
