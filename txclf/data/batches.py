"""Rows of tokens to padded tensors.

A row of more tokens than the model reads at once becomes several sequences, its windows, which stay together.

Shapes: S steps, G rows of a global batch, B rows of a batch on this rank, W their sequences (without windows W = B), T
tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from txclf.core.hashing import mix, uniform
from txclf.data.labels import LabelSets
from txclf.data.sampler import WHOLE, Int32s, Ints, Layout, Lengths, padding_share

PART_TOKENS = 2**20
"""Tokens that are looked at at once where all are: their numbers take a hundred bytes each."""


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
        values = [np.asarray(np.from_dlpack(chunk.flatten()), np.int32) for chunk in lists]
        lengths = [np.diff(np.from_dlpack(chunk.offsets)).astype(np.int32) for chunk in lists]
        self.values: Int32s = values[0] if len(values) == 1 else np.concatenate([np.empty(0, np.int32), *values])
        self.lengths: Int32s = np.concatenate([np.empty(0, np.int32), *lengths])
        self.starts: Ints = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        labelled = [table["label"] for table in tables if "label" in table.column_names]
        labels = [np.from_dlpack(chunk) for column in labelled for chunk in column.chunks]
        self.labels: Int32s = np.concatenate([np.empty(0, np.int32), *labels]).astype(np.int32)
        several = bool(tables) and all("labels" in table.column_names for table in tables)
        self.label_sets = LabelSets.from_tables(tables) if several else None

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

    def kept_lengths(self, token_dropout: float, key: int) -> Lengths:
        """The tokens that `token_dropout` leaves of each row, as `pad` does."""
        lengths = self.lengths.copy()
        for part in np.array_split(np.flatnonzero(lengths), 1 + int(self.lengths.sum(dtype=np.int64)) // PART_TOKENS):
            if len(part):
                firsts = np.cumsum(self.lengths[part]) - self.lengths[part]
                lengths[part] = np.add.reduceat(survives(self._places(part), token_dropout, key), firsts)
        return np.maximum(lengths, np.minimum(self.lengths, 1))

    def padding_share(self, batches: Ints, world_size: int, accumulate: int, lengths: Lengths | None = None) -> float:
        """Share of the positions of these global batches (S, G) that hold no token.

        `lengths`: what token dropout left of the rows; those of several windows count whole.
        """
        lengths = None if self.layout.window is not None else lengths
        return padding_share(
            [self.lengths if lengths is None else lengths], batches, world_size, accumulate, self.layout
        )

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
            kept = survives(places, token_dropout, key)
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
    def from_tables(cls, tables: Sequence[pa.Table]) -> Self:
        """Of tables with `input_ids` and `target_ids`."""
        return cls(TokenRows(tables), TokenRows(tables, "target_ids"))

    def __len__(self) -> int:
        return len(self.lengths)

    def step_size(self, rows: Ints) -> int:
        """Target tokens that these rows predict, which the loss of their step is divided by."""
        return int(self.target.lengths[rows].sum()) - len(rows)

    def padding_share(self, batches: Ints, world_size: int, accumulate: int, lengths: Lengths | None = None) -> float:
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


def survives(places: Ints, token_dropout: float, key: int) -> npt.NDArray[np.bool_]:
    """Which of the tokens at these places are left."""
    kept: npt.NDArray[np.bool_] = uniform(mix(places.astype(np.uint64) ^ mix(np.uint64(key)))) >= token_dropout
    return kept


def columns(tokens: Int32s, lengths: Ints, separator: int) -> Int32s:
    """The text column of each token of rows that lie one after the other; a separator belongs to the column before."""
    marks = tokens == separator
    before = np.cumsum(marks) - marks
    firsts = np.cumsum(lengths) - lengths
    numbers: Int32s = (before - np.repeat(before[firsts], lengths)).astype(np.int32)
    return numbers


def ranges(starts: Ints, lengths: Lengths) -> Ints:
    """The numbers from each start on, as many as its length, one range after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)


def padded(tokens: Int32s, lengths: Ints) -> tuple[Tensor, Tensor | None]:
    """Rows that lie one after the other as (B, T) int64, zero where there is no token; and their mask, None if full."""
    inside = np.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    ids = np.zeros(inside.shape, np.int64)
    ids[inside] = tokens
    return torch.from_numpy(ids), None if bool(inside.all()) else torch.from_numpy(inside)
