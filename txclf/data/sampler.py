"""Which rank gets which rows in which step, as pure functions.

The unit is the global batch: `batch_size` rows per optimizer step over all ranks. For an epoch,

    permutation of all rows, drawn from (seed, epoch)         the tail that fills no batch is left out
      ─▶ windows of `window_batches` global batches           each sorted by length and cut into batches
      ─▶ the batches of a window in an order drawn from the same generator
      ─▶ rank r of W takes rows r, r + W, r + 2 W … of each   so batch k is about as long on every rank

With labels the first line is another: the rows are drawn so that all classes come equally often (`balanced_order`).

Nothing but the last line knows the number of ranks: a step has the same rows on any number of them, and the position
in an epoch is one number, the step.

Shapes: S steps, G rows of a global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Layout:
    """How rows of tokens become the sequences that a model reads."""

    window: int | None = None
    """Tokens of a window; None: a row is one sequence."""
    overlap: int = 0
    """Tokens that neighbouring windows share."""
    separator: int | None = None
    """The token between text columns, where the model tells these apart."""

    def counts(self, lengths: Lengths) -> Ints:
        """Sequences of each row, by its length."""
        if self.window is None:
            return np.ones(len(lengths), np.int64)
        stride = self.window - self.overlap
        return 1 + np.maximum(0, -(-(lengths.astype(np.int64) - self.window) // stride))

    def spans(self, lengths: Lengths) -> tuple[Ints, Ints, Ints]:
        """Row, first token (within its row) and length of each sequence. The last window of a row ends with it, so that
        no window is shorter than the others."""
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
    """Optimizer steps of an epoch: whole global batches only."""
    return num_rows // batch_size


def balanced_order(labels: Int32s, places: int, generator: np.random.Generator) -> tuple[Ints, int]:
    """Row numbers (places,) in which the classes that occur come equally often, give or take one; and how many places
    lie, about, between two copies of a row of the rarest class.

    A class with more rows than its share of the places gives some of them, once each; one with fewer gives its rows
    in turn, again and again. The rows of every class are spread evenly over the places.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = np.full(len(classes), places // len(classes))
    shares[generator.permutation(len(classes))[: places % len(classes)]] += 1
    rows, keys = [], []
    for label, share in zip(classes, shares, strict=True):
        own = np.flatnonzero(labels == label)
        rows.append(np.resize(generator.permutation(own), share))
        keys.append((np.arange(share) + generator.random(share)) / max(1, share))
    order: Ints = np.concatenate(rows)[np.argsort(np.concatenate(keys), kind="stable")]
    return order, int(counts.min()) * len(classes)


def epoch_batches(
    lengths: Lengths, batch_size: int, window_batches: int, seed: int, epoch: int, labels: Int32s | None = None
) -> Ints:
    """Row numbers of every global batch of an epoch, (S, G). No row stands twice; at most G - 1 are left out.

    With `labels` the classes come equally often instead, in as many steps: rows of rare classes stand several times.
    A window is then no longer than one turn of the rarest class: sorting by length would bring a row's copies together.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    steps = steps_per_epoch(len(lengths), batch_size)
    if labels is None:
        order = generator.permutation(len(lengths))[: steps * batch_size]
    else:
        order, turn = balanced_order(labels, steps * batch_size, generator)
        window_batches = max(1, min(window_batches, turn // batch_size))
    batches = np.empty((steps, batch_size), np.int64)
    for start in range(0, steps, window_batches):
        stop = min(start + window_batches, steps)
        window = order[start * batch_size : stop * batch_size]
        by_length = window[np.argsort(lengths[window], kind="stable")].reshape(-1, batch_size)
        batches[start:stop] = by_length[generator.permutation(stop - start)]
    return batches


class BatchSampler:
    """The rows of every step of a run, the same on any number of ranks."""

    def __init__(
        self,
        lengths: Lengths,
        batch_size: int,
        window_batches: int,
        seed: int,
        labels: Int32s | None = None,
        lengths_of: Callable[[int], Lengths] | None = None,
    ) -> None:
        """`lengths_of`: the lengths in an epoch, by its key, where they are not the same in each."""
        self.lengths_of, self.epoch_lengths = lengths_of, lengths
        self.lengths, self.batch_size, self.window_batches, self.seed = lengths, batch_size, window_batches, seed
        self.labels = labels
        self.steps_per_epoch = steps_per_epoch(len(lengths), batch_size)
        self.epoch, self.batches = -1, np.empty((0, 0), np.int64)

    def key(self, epoch: int) -> int:
        """What the token dropout of an epoch follows from."""
        return self.seed ^ (epoch << 32)

    def rows(self, step: int) -> Ints:
        """Row numbers (G,) of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            if self.lengths_of:
                self.epoch_lengths = self.lengths_of(self.key(epoch))
            self.batches = epoch_batches(
                self.epoch_lengths, self.batch_size, self.window_batches, self.seed, epoch, self.labels
            )
            self.epoch = epoch
        rows: Ints = self.batches[position]
        return rows


def rank_parts(rows: Ints, rank: int, world_size: int, accumulate: int) -> list[Ints]:
    """This rank's rows of a global batch (G,), cut into `accumulate` parts of neighbouring lengths.

    Every rank gets the same number of parts; a part may be one row shorter than another, and is empty only where the
    batch has fewer than `world_size * accumulate` rows.
    """
    return np.array_split(rows[rank::world_size], accumulate)


def scoring_batches(
    lengths: Lengths, batch_size: int, rank: int, world_size: int, costs: Ints | None = None
) -> Iterator[Ints]:
    """This rank's rows for scoring: over all ranks each row once, longest first, so that memory peaks at once.

    With `costs`, the sequences of each row, a batch has no more than `batch_size` sequences, or one row.
    """
    by_length = np.argsort(-lengths, kind="stable")[rank::world_size]
    start = 0
    while start < len(by_length):
        part = by_length[start : start + batch_size]
        if costs is not None:
            part = part[: max(1, int(np.searchsorted(np.cumsum(costs[part]), batch_size, side="right")))]
        yield part
        start += len(part)


def padding_share(
    sides: Sequence[Lengths], batches: Ints, world_size: int, accumulate: int, layout: Layout = WHOLE
) -> float:
    """Share of the positions of global batches (S, G) that hold no token; `sides` are the lengths of what is padded."""
    padded = tokens = 0
    for rows in batches:
        for rank in range(world_size):
            parts = [part for part in rank_parts(rows, rank, world_size, accumulate) if len(part)]
            for spans in (layout.spans(lengths[part])[2] for part in parts for lengths in sides):
                padded += int(spans.max()) * len(spans)
                tokens += int(spans.sum())
    return 1.0 - tokens / padded if padded else 0.0
