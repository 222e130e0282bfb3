"""Rows to batches: which rank gets which rows in which step, as pure functions, and the padded tensors.

The unit is the global batch: `batch_size` rows per optimizer step over all ranks. For an epoch,

    permutation of all rows, drawn from (seed, epoch)         the tail that fills no batch is left out
      ─▶ windows of `window_batches` global batches           each sorted by length and cut into batches
      ─▶ the batches of a window in an order drawn from the same generator
      ─▶ rank r of W takes rows r, r + W, r + 2 W … of each   so batch k is about as long on every rank

With labels the first line is another: the rows are drawn so that all classes come equally often (`balanced_order`).

Nothing but the last line knows the number of ranks: a step has the same rows on any number of them, and the position
in an epoch is one number, the step.

A row of more tokens than the model reads at once becomes several sequences, its windows, which stay together.

Shapes: S steps, G rows of a global batch, B rows of a batch on this rank, W their sequences (without windows W = B), T
tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from txclf.data.labels import LabelSets
from txclf.hashes import mix, uniform

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.signedinteger[Any]]


class Batch(TypedDict):
    """What a step takes."""

    input_ids: Tensor
    """(W, T) int64, zero where there is no token."""
    mask: Tensor | None
    """(W, T) bool, True at real tokens; None when all are real."""
    segments: Tensor | None
    """(W, T) int64, the text column of each token; None when columns are not told apart."""
    windows: Tensor | None
    """(W,) int64, the row of each sequence; None when each row is one."""
    labels: Tensor
    """(B,) int64; of `multilabel` (B, K), the class numbers of each row and -1 behind them."""
    num_tokens: int
    """Real tokens, those in several windows several times."""


class PairBatch(TypedDict):
    """What a step of `seq2seq` takes: U target tokens, `[BOS]` first."""

    input_ids: Tensor
    mask: Tensor | None
    target_ids: Tensor
    """(B, U) int64, zero where there is no token."""
    target_lengths: Tensor
    """(B,) int64."""
    num_tokens: int


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


class Sequences(NamedTuple):
    """Sequences of tokens of some rows, padded."""

    input_ids: Tensor
    """(W, T) int64."""
    mask: Tensor | None
    segments: Tensor | None
    windows: Tensor | None
    num_tokens: int


class TokenRows:
    """Rows held as one flat array of token ids: any rows can be gathered without a Python loop over tokens.

    Made of Arrow tables with a column of token ids (list<int32>) and, where there are labels, `label`, or `labels`
    where a row may have several. A single chunk is not copied. `layout` says how the rows become sequences.
    """

    def __init__(self, tables: Sequence[pa.Table], column: str = "input_ids", layout: Layout = WHOLE) -> None:
        self.layout = layout
        lists = [chunk for table in tables for chunk in table[column].chunks if len(chunk)]
        # Arrow's own `to_numpy` would import pandas first.
        values = [np.from_dlpack(chunk.flatten()) for chunk in lists]
        lengths = [np.diff(np.from_dlpack(chunk.offsets)).astype(np.int32) for chunk in lists]
        self.values: Int32s = values[0] if len(values) == 1 else np.concatenate([np.empty(0, np.int32), *values])
        self.lengths: Int32s = np.concatenate([np.empty(0, np.int32), *lengths])
        self.starts: Ints = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        labelled = [table["label"] for table in tables if "label" in table.column_names]
        labels = [np.from_dlpack(chunk) for column in labelled for chunk in column.chunks]
        self.labels: Int32s = np.concatenate([np.empty(0, np.int32), *labels]).astype(np.int32)
        several = bool(tables) and all("labels" in table.column_names for table in tables)
        self.label_sets = LabelSets.of(tables) if several else None

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, rows: Ints) -> Int32s:
        """The token ids of the given rows, one row after the other."""
        tokens: Int32s = self.values[self._places(rows)]
        return tokens

    def _places(self, rows: Ints) -> Ints:
        """The place of each of their tokens among all tokens."""
        return ranges(self.starts[rows], self.lengths[rows])

    def step_size(self, rows: Ints) -> int:
        """What the loss of a step with these rows is divided by."""
        return len(rows)

    def padding_share(self, batches: Ints, world_size: int, accumulate: int) -> float:
        """Share of the positions of these global batches (S, G) that hold no token."""
        return padding_share([self.lengths], batches, world_size, accumulate, self.layout)

    @property
    def costs(self) -> Ints | None:
        """Sequences of each row; None where each row is one."""
        return None if self.layout.window is None else self.layout.counts(self.lengths)

    def batch(self, rows: Ints, token_dropout: float = 0.0, key: int = 0) -> Batch:
        """The given rows and their labels, as `pad` makes them."""
        if self.label_sets is None:
            labels = torch.from_numpy(self.labels[rows].astype(np.int64))
        else:
            labels = self.label_sets.padded(rows)
        ids, mask, segments, windows, num_tokens = self.pad(rows, token_dropout, key)
        return Batch(input_ids=ids, mask=mask, segments=segments, windows=windows, labels=labels, num_tokens=num_tokens)

    def pad(self, rows: Ints, token_dropout: float = 0.0, key: int = 0) -> Sequences:
        """The sequences of the given rows, padded to the longest of them.

        `token_dropout` leaves out that share of the tokens (word dropout, Iyyer et al., ACL 2015), so sequences get
        shorter too; at least one of each stays. Which ones depends on the token and `key` alone, not on the batch.
        """
        lengths, layout = self.lengths[rows].astype(np.int64), self.layout
        tokens = self.tokens(rows)
        segments = None if layout.separator is None else columns(tokens, lengths, layout.separator)
        windows = None
        places = self._places(rows) if token_dropout else None
        if layout.window is not None and lengths.max() > layout.window:
            owners, starts, sizes = layout.spans(lengths)
            inside = ranges((np.cumsum(lengths) - lengths)[owners] + starts, sizes)
            tokens, lengths, windows = tokens[inside], sizes, torch.from_numpy(owners)
            segments = None if segments is None else segments[inside]
            places = None if places is None else places[inside]
        if places is not None:
            kept = uniform(mix(places.astype(np.uint64) ^ mix(np.uint64(key)))) >= token_dropout
            firsts = np.cumsum(lengths) - lengths
            kept[firsts[np.add.reduceat(kept, firsts) == 0]] = True
            tokens, lengths = tokens[kept], np.add.reduceat(kept, firsts)
            segments = None if segments is None else segments[kept]
        ids, mask = padded(tokens, lengths)
        told = None if segments is None else padded(segments, lengths)[0]
        return Sequences(ids, mask, told, windows, int(lengths.sum()))


class PairRows:
    """Rows of `seq2seq`: a source and a target each."""

    costs: Ints | None = None

    def __init__(self, source: TokenRows, target: TokenRows) -> None:
        self.source, self.target = source, target
        # What rows are sorted by: the target, which costs more, then the source.
        self.lengths: Ints = self.target.lengths.astype(np.int64) << 32 | self.source.lengths

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> Self:
        """Of tables with `input_ids` and `target_ids`."""
        return cls(TokenRows(tables), TokenRows(tables, "target_ids"))

    def __len__(self) -> int:
        return len(self.lengths)

    def step_size(self, rows: Ints) -> int:
        """Target tokens that these rows predict, which the loss of their step is divided by."""
        return int(self.target.lengths[rows].sum()) - len(rows)

    def padding_share(self, batches: Ints, world_size: int, accumulate: int) -> float:
        """Share of the positions of these global batches (S, G) that hold no token, of both sides."""
        return padding_share([self.source.lengths, self.target.lengths], batches, world_size, accumulate)

    def batch(self, rows: Ints, token_dropout: float = 0.0, key: int = 0) -> PairBatch:
        """The given rows, each side padded to its longest; `token_dropout` leaves out tokens of the source."""
        source = self.source.pad(rows, token_dropout, key)
        lengths = self.target.lengths[rows].astype(np.int64)
        target_ids, _ = padded(self.target.tokens(rows), lengths)
        return PairBatch(
            input_ids=source.input_ids,
            mask=source.mask,
            target_ids=target_ids,
            target_lengths=torch.from_numpy(lengths),
            num_tokens=source.num_tokens + int(lengths.sum()) - len(rows),
        )


Rows = TokenRows | PairRows


def ranges(starts: Ints, lengths: Lengths) -> Ints:
    """The numbers from each start on, as many as its length, one range after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)


def columns(tokens: Int32s, lengths: Ints, separator: int) -> Int32s:
    """The text column of each token of rows that lie one after the other; a separator belongs to the column before."""
    marks = tokens == separator
    before = np.cumsum(marks) - marks
    firsts = np.cumsum(lengths) - lengths
    numbers: Int32s = (before - np.repeat(before[firsts], lengths)).astype(np.int32)
    return numbers


def padded(tokens: Int32s, lengths: Ints) -> tuple[Tensor, Tensor | None]:
    """Rows that lie one after the other as (B, T) int64, zero where there is no token; and their mask, None if full."""
    inside = np.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    ids = np.zeros(inside.shape, np.int64)
    ids[inside] = tokens
    return torch.from_numpy(ids), None if bool(inside.all()) else torch.from_numpy(inside)


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


class Plan:
    """The rows of every step of a run, the same on any number of ranks."""

    def __init__(
        self, lengths: Lengths, batch_size: int, window_batches: int, seed: int, labels: Int32s | None = None
    ) -> None:
        self.lengths, self.batch_size, self.window_batches, self.seed = lengths, batch_size, window_batches, seed
        self.labels = labels
        self.steps_per_epoch = steps_per_epoch(len(lengths), batch_size)
        self.epoch, self.batches = -1, np.empty((0, 0), np.int64)

    def rows(self, step: int) -> Ints:
        """Row numbers (G,) of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.batches = epoch_batches(
                self.lengths, self.batch_size, self.window_batches, self.seed, epoch, self.labels
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
