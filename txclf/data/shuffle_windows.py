"""Shuffle windows: the parts of an epoch whose rows are shuffled together, as pure functions.

An epoch puts the row groups of all shards into an order drawn from (seed, epoch). Window w holds the rows
`w * S * G` to `(w + 1) * S * G` of that order: S steps of G rows. The last window also holds the rows that fill no
batch. So the steps of an epoch are known before the first row is read, a run resumes by reading from the window of its
step, and a process holds the rows of a few windows, however large the split. `txclf.data.sampler` makes the batches of
a window. A split that fits one window is shuffled as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from txclf.data import sampler
from txclf.data.shards import GROUP_ROWS, Split

Ints = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """Consecutive rows of one row group."""

    shard: int
    """Number of the shard in the split."""
    group: int
    """Number of the row group in the shard."""
    start: int
    """First row within the group."""
    stop: int
    """End of the rows within the group."""
    number: int
    """Number of the first row in the split."""


@dataclass(frozen=True)
class ShuffleWindows:
    """The windows of a training split, numbered over all epochs."""

    shard_rows: tuple[int, ...]
    """Rows of each shard."""
    batch_size: int
    """Rows of a global batch."""
    max_steps: int
    """Maximum number of steps of a window."""
    seed: int

    @classmethod
    def of_split(cls, split: Split, batch_size: int, max_tokens: int, seed: int) -> Self:
        """Return the windows of about `max_tokens` tokens; a window has at least one step."""
        tokens = max(1, split.tokens + split.target_tokens)
        max_steps = max(1, max_tokens * split.rows // (tokens * batch_size))
        return cls(tuple(shard.rows for shard in split.shards), batch_size, max_steps, seed)

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return sum(self.shard_rows)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, one per whole global batch."""
        return sampler.steps_per_epoch(self.num_rows, self.batch_size)

    @property
    def steps_per_window(self) -> int:
        """Steps of a window; the last window of an epoch may have fewer."""
        return -(-self.steps_per_epoch // -(-self.steps_per_epoch // self.max_steps))

    @property
    def windows_per_epoch(self) -> int:
        """Windows of an epoch."""
        return -(-self.steps_per_epoch // self.steps_per_window)

    def place(self, window: int) -> tuple[int, int]:
        """Return the epoch of a window and its number in the epoch."""
        return divmod(window, self.windows_per_epoch)

    def steps(self, window: int) -> range:
        """Return the steps of a window."""
        epoch, number = self.place(window)
        first = number * self.steps_per_window
        start = epoch * self.steps_per_epoch + first
        return range(start, start + min(self.steps_per_window, self.steps_per_epoch - first))

    def window_of(self, step: int) -> int:
        """Return the window of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch * self.windows_per_epoch + position // self.steps_per_window

    def token_key(self, window: int) -> int:
        """Return the key of the token dropout of a window, which is that of its epoch."""
        return self.seed ^ (self.place(window)[0] << 32)

    def pieces(self, window: int) -> list[Piece]:
        """Return the rows of a window, in the order of the split."""
        epoch, number = self.place(window)
        groups, ends = _epoch_order(self.shard_rows, self.seed, epoch)
        first = number * self.steps_per_window * self.batch_size
        last = first + self.steps_per_window * self.batch_size
        if number == self.windows_per_epoch - 1:
            last = self.num_rows
        chosen = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last, "left")) + 1)
        pieces = []
        for index in chosen:
            shard, group, start_row, rows = groups[index].tolist()
            begin = int(ends[index]) - rows
            start, stop = max(first, begin) - begin, min(last, int(ends[index])) - begin
            pieces.append(Piece(shard, group, start, stop, start_row + start))
        return sorted(pieces)


def row_groups(shard_rows: tuple[int, ...]) -> Ints:
    """Return shard, number in the shard, first row in the split and rows of every row group, (groups, 4)."""
    rows = np.array(shard_rows, np.int64)
    counts = -(-rows // GROUP_ROWS)
    shards = np.repeat(np.arange(len(rows)), counts)
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = (np.cumsum(rows) - rows)[shards] + numbers * GROUP_ROWS
    sizes = np.minimum(GROUP_ROWS, rows[shards] - numbers * GROUP_ROWS)
    return np.stack([shards, numbers, firsts, sizes], axis=1)


@lru_cache(maxsize=4)
def _epoch_order(shard_rows: tuple[int, ...], seed: int, epoch: int) -> tuple[Ints, Ints]:
    """Return the row groups in the order of an epoch, and the number of rows up to the end of each."""
    groups = row_groups(shard_rows)
    # The spawn key keeps this draw apart from those within the windows.
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch], spawn_key=(0,))))
    order = groups[generator.permutation(len(groups))]
    return order, np.cumsum(order[:, 3])
