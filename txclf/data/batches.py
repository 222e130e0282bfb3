"""Rows of tokens to padded tensors.

A row with more tokens than the model reads at once becomes several sequences, its windows, which stay in one batch.

Shapes: S steps, G rows of a global batch, B rows of a batch on this rank, W sequences of these rows (W = B without
windows), T tokens of a sequence, U tokens of a target, K labels of the row with the most labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, Self, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.config.sections import SpecialTokens
from txclf.core.hashing import mix, uniform
from txclf.core.ragged import concat_ranges
from txclf.data import sidecars
from txclf.data.labels import LabelSets
from txclf.data.sampler import WHOLE, Int32s, Ints, Layout, Lengths

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_TOKENS = 2**20
"""Tokens processed at a time in a pass over all tokens. Each takes about 100 bytes meanwhile."""
TEACHER = "teacher_logits"
"""Column of a sidecar with the logits of a teacher."""
ENCODED = "encoded"
"""Column of a sidecar with the vectors that a head reads."""
NUMBER = "number"
"""Column with the number of each row in its split, int64."""


class Batch(TypedDict):
    """Input of a training or scoring step of a classifier."""

    input_ids: Tensor
    """(W, T) int64, 0 or the padding token of a pretrained model at padding."""
    mask: Tensor | None
    """(W, T) bool, True at real tokens; None if there is no padding."""
    segments: Tensor | None
    """(W, T) int64, the text column of each token; None without segment embeddings."""
    windows: Tensor | None
    """(W,) int64, the row of each sequence; None if each row is one sequence."""
    labels: Tensor
    """(B,) int64 class ids; (B, K) if multilabel, padded with -1."""
    num_tokens: int
    """Real tokens. A token in several windows counts once per window."""
    encoded: NotRequired[Tensor]
    """(B, D) float32, what the head reads of each row, if a frozen encoder has read the rows before."""
    teacher_logits: NotRequired[Tensor]
    """(B, C) float32, if a teacher is distilled."""
    labelled: NotRequired[Tensor | None]
    """(B,) bool, False at rows that only the teacher answers; None if there are none."""


class PairBatch(TypedDict):
    """Input of a step of `seq2seq`. Targets start with `[BOS]`."""

    input_ids: Tensor
    mask: Tensor | None
    target_ids: Tensor
    """(B, U) int64, 0 at padding."""
    target_lengths: Tensor
    """(B,) int64."""
    num_tokens: int


class Sequences(NamedTuple):
    """Padded token sequences of some rows."""

    input_ids: Tensor
    """(W, T) int64."""
    mask: Tensor | None
    segments: Tensor | None
    windows: Tensor | None
    num_tokens: int


class TokenRows:
    """Token rows in one flat array, so that rows are gathered without a Python loop over tokens.

    They come from Arrow tables with a column of token ids (list<int32>) and, for classifiers, a column `label` (one
    class id) or `labels` (a list of class ids). A single chunk is not copied. `layout` maps rows to sequences. Rows of
    a part of a split have their numbers in the split in a column `number`, which token dropout depends on.
    """

    def __init__(self, tables: Sequence[pa.Table], column: str = "input_ids", layout: Layout = WHOLE) -> None:
        self.layout = layout
        lists = [chunk for table in tables for chunk in table[column].chunks if len(chunk)]
        # Arrow's own `to_numpy` would import pandas.
        values = [np.asarray(np.from_dlpack(chunk.flatten()), np.int32) for chunk in lists]
        lengths = [np.diff(np.from_dlpack(chunk.offsets)).astype(np.int32) for chunk in lists]
        self.values: Int32s = values[0] if len(values) == 1 else np.concatenate([np.empty(0, np.int32), *values])
        self.lengths: Int32s = np.concatenate([np.empty(0, np.int32), *lengths])
        self.starts: Ints = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        labelled = [table["label"] for table in tables if "label" in table.column_names]
        labels = [np.from_dlpack(chunk) for column in labelled for chunk in column.chunks]
        self.labels: Int32s = np.concatenate([np.empty(0, np.int32), *labels]).astype(np.int32)
        numbered = [chunk for table in tables if NUMBER in table.column_names for chunk in table[NUMBER].chunks]
        self.numbers: Ints = (
            np.concatenate([np.from_dlpack(chunk) for chunk in numbered]) if numbered else np.arange(len(self.lengths))
        )
        is_multilabel = bool(tables) and all("labels" in table.column_names for table in tables)
        self.label_sets = LabelSets.from_tables(tables) if is_multilabel else None
        names = set(tables[0].column_names) if tables else set()
        self.teacher_logits = sidecars.values(tables, TEACHER) if TEACHER in names else None
        self.encoded = sidecars.values(tables, ENCODED) if ENCODED in names else None
        self.masked: npt.NDArray[np.bool_] | None = None
        """Tokens that are masked, in the order of `values`."""
        self.ngram_scores: npt.NDArray[np.float32] | None = None
        """Log-probabilities (rows, classes) of the linear model that answers together with the network."""

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, rows: Ints) -> Int32s:
        """Return the token ids of the given rows, one row after another."""
        tokens: Int32s = self.values[concat_ranges(self.starts[rows], self.lengths[rows])]
        return tokens

    def mask(self, share: float, key: int) -> Self:
        """Mask a share of the tokens, which become `~id`, and return these rows.

        The choice depends on the number of the row, the position of the token in it and `key` only, as token dropout.
        """
        self.masked = ~keep_mask(self.numbers, self.lengths, share, key)
        if self.layout.separator is not None:  # which tells the text columns apart
            self.masked &= self.values != self.layout.separator
        self.values = np.where(self.masked, ~self.values, self.values)
        return self

    def step_size(self, rows: Ints) -> int:
        """Return the divisor of the loss of a step with these rows: their number, or that of their masked tokens."""
        if self.masked is None:
            return len(rows)
        return max(1, int(self.masked[concat_ranges(self.starts[rows], self.lengths[rows])].sum()))

    def kept_lengths(self, token_dropout: float, key: int) -> Lengths:
        """Return the tokens of each row that `token_dropout` keeps, the same tokens as in `pad`."""
        lengths = self.lengths.copy()
        for chunk in np.array_split(np.flatnonzero(lengths), 1 + int(self.lengths.sum(dtype=np.int64)) // CHUNK_TOKENS):
            if len(chunk):
                firsts = np.cumsum(self.lengths[chunk]) - self.lengths[chunk]
                kept = keep_mask(self.numbers[chunk], self.lengths[chunk], token_dropout, key)
                lengths[chunk] = np.add.reduceat(kept, firsts)
        return np.maximum(lengths, np.minimum(self.lengths, 1))

    @property
    def costs(self) -> Ints | None:
        """Sequences per row; None if each row is one sequence."""
        return None if self.layout.window is None else self.layout.counts(self.lengths)

    def batch(self, rows: Ints, token_dropout: float = 0.0, key: int = 0) -> Batch:
        """Return the given rows and their labels, padded as in `pad`."""
        sets = self.label_sets
        labels = tensor(self.labels[rows].astype(np.int64)) if sets is None else sets.padded(rows)
        ids, mask, segments, windows, num_tokens = self.pad(rows, token_dropout, key)
        batch = Batch(
            input_ids=ids, mask=mask, segments=segments, windows=windows, labels=labels, num_tokens=num_tokens
        )
        if self.encoded is not None:
            batch["encoded"] = tensor(self.encoded[rows])
        if self.teacher_logits is not None:
            labelled = self.labels[rows] >= 0
            batch["teacher_logits"] = tensor(self.teacher_logits[rows])
            batch["labelled"] = None if labelled.all() else tensor(labelled)
        return batch

    def pad(self, rows: Ints, token_dropout: float = 0.0, key: int = 0) -> Sequences:
        """Return the sequences of the given rows, padded to the longest of them.

        `token_dropout` removes that share of the tokens (word dropout, Iyyer et al., ACL 2015), which also makes
        sequences shorter. Each sequence keeps at least one token. The choice depends on the number of the row, the
        position of the token in it and `key` only, not on the batch.
        """
        lengths, layout = self.lengths[rows].astype(np.int64), self.layout
        tokens = self.tokens(rows)
        segments = None if layout.separator is None else columns(tokens, lengths, layout.separator)
        windows = None
        kept = keep_mask(self.numbers[rows], lengths, token_dropout, key) if token_dropout else None
        if layout.window is not None and lengths.max() > layout.window:
            owners, starts, sizes = layout.spans(lengths)
            inside = concat_ranges((np.cumsum(lengths) - lengths)[owners] + starts, sizes)
            tokens, lengths, windows = tokens[inside], sizes, tensor(owners)
            segments = None if segments is None else segments[inside]
            kept = None if kept is None else kept[inside]
        if kept is not None:
            firsts = np.cumsum(lengths) - lengths
            kept[firsts[(counts(kept, lengths) == 0) & (lengths > 0)]] = True
            tokens, lengths = tokens[kept], counts(kept, lengths)
            segments = None if segments is None else segments[kept]
        fill = 0
        if layout.special is not None:
            if segments is not None:
                segments = segments_with_special(tokens, lengths, segments, layout.special)
            tokens, lengths = with_special(tokens, lengths, layout.special)
            fill = layout.special.pad
        width = layout.width(int(lengths.max()))
        ids, mask = padded(tokens, lengths, fill, width)
        padded_segments = None if segments is None else padded(segments, lengths, width=width)[0]
        return Sequences(ids, mask, padded_segments, windows, int(lengths.sum()))


class PairRows:
    """Rows of `seq2seq`, each with a source and a target."""

    costs: Ints | None = None

    def __init__(self, source: TokenRows, target: TokenRows) -> None:
        self.source, self.target = source, target
        # Sort key: the length of the target, which costs more, then that of the source.
        self.lengths: Ints = self.target.lengths.astype(np.int64) << 32 | self.source.lengths

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Self:
        """Return the rows of tables with `input_ids` and `target_ids`."""
        return cls(TokenRows(tables), TokenRows(tables, "target_ids"))

    def __len__(self) -> int:
        return len(self.lengths)

    def step_size(self, rows: Ints) -> int:
        """Return the number of target tokens that these rows predict, the divisor of the loss of their step."""
        return int(self.target.lengths[rows].sum()) - len(rows)

    def batch(self, rows: Ints, token_dropout: float = 0.0, key: int = 0) -> PairBatch:
        """Return the given rows, each side padded to its longest. `token_dropout` removes tokens of the source."""
        source = self.source.pad(rows, token_dropout, key)
        lengths = self.target.lengths[rows].astype(np.int64)
        target_ids, _ = padded(self.target.tokens(rows), lengths)
        return PairBatch(
            input_ids=source.input_ids,
            mask=source.mask,
            target_ids=target_ids,
            target_lengths=tensor(lengths),
            num_tokens=source.num_tokens + int(lengths.sum()) - len(rows),
        )


Rows = TokenRows | PairRows


def keep_mask(
    numbers: Ints, lengths: npt.NDArray[np.signedinteger[Any]], token_dropout: float, key: int
) -> npt.NDArray[np.bool_]:
    """Return a mask of the tokens that token dropout keeps, for rows of these numbers and lengths one after another."""
    row_keys = mix(numbers.astype(np.uint64) ^ mix(np.uint64(key)))
    positions = concat_ranges(np.zeros(len(lengths), np.int64), lengths).astype(np.uint64)
    kept: npt.NDArray[np.bool_] = uniform(mix(np.repeat(row_keys, lengths) ^ positions)) >= token_dropout
    return kept


def columns(tokens: Int32s, lengths: Ints, separator: int) -> Int32s:
    """Return the text column of each token of rows stored one after another.

    A separator belongs to the column before it.
    """
    is_separator = tokens == separator
    before = np.append(0, np.cumsum(is_separator))
    firsts = np.cumsum(lengths) - lengths
    numbers: Int32s = (before[:-1] - np.repeat(before[firsts], lengths)).astype(np.int32)
    return numbers


def counts(mask: npt.NDArray[np.bool_], lengths: Ints) -> Ints:
    """Return the number of True values in each of the rows, which are stored one after another."""
    before, ends = np.append(0, np.cumsum(mask)), np.cumsum(lengths)
    numbers: Ints = before[ends] - before[ends - lengths]
    return numbers


def with_special(tokens: Int32s, lengths: Ints, special: SpecialTokens) -> tuple[Int32s, Ints]:
    """Return sequences stored one after another, and their lengths, with the special tokens around each."""
    return _surrounded(tokens, lengths, special.prefix, special.suffix), lengths + special.added


def segments_with_special(tokens: Int32s, lengths: Ints, segments: Int32s, special: SpecialTokens) -> Int32s:
    """Return the token types of `with_special`: those of the text columns, and of the special tokens around them."""
    last_types = np.zeros(len(lengths), np.int32)
    inside = lengths > 0
    lasts = np.cumsum(lengths)[inside] - 1
    last_types[inside] = segments[lasts] + (tokens[lasts] == special.separator[-1])  # it belongs to the column before
    types = _surrounded(segments, lengths, (0,) * len(special.prefix), (0,) * len(special.suffix))
    ends = np.cumsum(lengths + special.added)
    for offset in range(len(special.suffix)):
        types[ends - 1 - offset] = last_types
    return np.minimum(types, special.token_types - 1)


def _surrounded(values: Int32s, lengths: Ints, before: Sequence[int], after: Sequence[int]) -> Int32s:
    totals = lengths + len(before) + len(after)
    ends = np.cumsum(totals)
    starts = ends - totals
    result = np.empty(int(totals.sum()), np.int32)
    result[concat_ranges(starts + len(before), lengths)] = values
    for offset, value in enumerate(before):
        result[starts + offset] = value
    for offset, value in enumerate(after):
        result[ends - len(after) + offset] = value
    return result


def tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return an array as a tensor of the same memory."""
    import torch  # not by the tasks that only read rows

    return torch.from_numpy(array)


def padded(tokens: Int32s, lengths: Ints, fill: int = 0, width: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Return rows stored one after another as (B, T) int64, `fill` at padding, and their mask; None without padding.

    T is `width`, or the length of the longest row.
    """
    inside = np.arange(int(lengths.max()) if width is None else width) < lengths[:, None]  # (B, T)
    ids = np.full(inside.shape, fill, np.int64)
    ids[inside] = tokens
    return tensor(ids), None if bool(inside.all()) else tensor(inside)
