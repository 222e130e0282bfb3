"""Readers of a split, window by window: each rank gets its own rows of a window, ready for batches.

A reader is plain data, so that it travels to the tasks that read. `read` takes the rows of a window from the shards,
`cut` divides them among the ranks. In one process both run in a thread ahead of training (`LocalWindows`); on Ray they
run in tasks of Ray Data (`txclf.training.distributed.ray_data`). Both give the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa

from txclf.data import pipeline, sampler, shards
from txclf.data.batches import NUMBER, PairRows, Rows, TokenRows
from txclf.data.sampler import Ints, Layout
from txclf.data.shards import Shard
from txclf.data.shuffle_windows import Piece, ShuffleWindows, row_groups
from txclf.data.sidecars import RowGroup, Sidecar

STEP_SIZES = b"step_sizes"
"""Key in the metadata of a cut table with the divisor of the loss of each step, int64."""


@dataclass(frozen=True)
class Window:
    """The rows of one rank in the steps of a shuffle window."""

    steps: range
    rows: Rows
    """The rows of each step, one step after another."""
    step_sizes: Ints
    """Divisor of the loss of each step, over all ranks (steps,)."""
    token_key: int
    """Key of token dropout."""

    def parts(self, step: int, micro_batches: int) -> list[Ints]:
        """Return the positions in `rows` of a step, split into micro-batches of similar lengths."""
        size, index = len(self.rows) // len(self.steps), step - self.steps.start
        return sampler.micro_batches(np.arange(index * size, (index + 1) * size), micro_batches)

    def step_size(self, step: int) -> int:
        """Return the divisor of the loss of a step: its rows over all ranks, or its target tokens."""
        return int(self.step_sizes[step - self.steps.start])


class Reader(Protocol):
    """Reader of the windows of a split."""

    @property
    def num_windows(self) -> int:
        """Number of windows in one pass over the split."""

    @property
    def num_bytes(self) -> int:
        """Approximate size of the split in memory."""

    def read(self, window: int) -> pa.Table:
        """Return the rows of a window, with their numbers in the split. Raises `DataError` for a damaged shard."""

    def cut(self, window: int, table: pa.Table, ranks: Sequence[int], world_size: int) -> Iterator[pa.Table]:
        """Yield the rows of each of the ranks."""


@dataclass(frozen=True)
class SplitReader:
    """The shards of a split and the columns to read."""

    folder: str
    """Prepared folder."""
    shards: tuple[Shard, ...]
    columns: tuple[str, ...]
    layout: Layout
    sidecars: tuple[Sidecar, ...] = field(default=(), kw_only=True)
    """Further columns."""
    masked: float = field(default=0.0, kw_only=True)
    """Share of the tokens that are masked."""

    @property
    def num_bytes(self) -> int:
        """Approximate size of the split in memory."""
        per_row = 20 + 4 * sum(sidecar.width for sidecar in self.sidecars)
        return sum(4 * (shard.tokens + shard.target_tokens) + per_row * shard.rows for shard in self.shards)

    def rows(self, tables: Sequence[pa.Table], key: int = 0) -> Rows:
        """Return tables of these columns as rows to make batches of. `key` selects the masked tokens."""
        if "target_ids" in self.columns:
            return PairRows.from_tables(tables)
        rows = TokenRows(tables, layout=self.layout)
        return rows.mask(self.masked, key) if self.masked else rows

    def read_pieces(self, pieces: Sequence[Piece]) -> pa.Table:
        """Return the rows of some pieces, in one chunk, with their numbers in the split."""
        tables: list[pa.Table] = []
        for shard in dict.fromkeys(piece.shard for piece in pieces):
            wanted = [piece for piece in pieces if piece.shard == shard]
            groups = [piece.group for piece in wanted]
            found = shards.read_groups(self.folder, self.shards[shard], self.columns, groups)
            for piece, table in zip(wanted, found, strict=True):
                for sidecar in self.sidecars:
                    column = sidecar.read(self.folder, RowGroup(self.shards[shard], piece.group))
                    table = table.append_column(sidecar.column, column)
                numbers = pa.array(np.arange(piece.number, piece.number + piece.stop - piece.start))
                tables.append(table.slice(piece.start, piece.stop - piece.start).append_column(NUMBER, numbers))
        table = pa.concat_tables(tables).combine_chunks()
        del tables
        pa.default_memory_pool().release_unused()  # which would grow to several windows otherwise
        return table


@dataclass(frozen=True)
class TrainReader(SplitReader):
    """Reader of a training split. Windows are numbered over all epochs."""

    windows: ShuffleWindows
    bucket_batches: int
    is_balanced: bool
    """True to draw all classes equally often."""
    token_dropout: float

    @property
    def num_windows(self) -> int:
        return self.windows.windows_per_epoch

    def read(self, window: int) -> pa.Table:
        return self.read_pieces(self.windows.pieces(window))

    def batches(self, window: int, rows: Rows) -> Ints:
        """Return the positions in a window of the rows of each of its steps, (S, G)."""
        epoch, number = self.windows.place(window)
        lengths, labels = rows.lengths, None
        if isinstance(rows, TokenRows):
            labels = rows.labels if self.is_balanced else None
            if self.token_dropout:  # which shortens rows
                lengths = rows.kept_lengths(self.token_dropout, self.windows.token_key(window))
        return sampler.window_batches(
            lengths,
            self.windows.batch_size,
            bucket_batches=self.bucket_batches,
            seed=self.windows.seed,
            epoch=epoch,
            window=number,
            labels=labels,
        )

    def cut(self, window: int, table: pa.Table, ranks: Sequence[int], world_size: int) -> Iterator[pa.Table]:
        rows = self.rows([table], self.windows.token_key(window))
        batches = self.batches(window, rows)
        sizes = np.array([rows.step_size(step_rows) for step_rows in batches], np.int64)
        for rank in ranks:
            own = table.take(pa.array(sampler.rank_share(batches, rank, world_size).reshape(-1)))
            yield own.replace_schema_metadata({STEP_SIZES: sizes.tobytes()})

    def window(self, number: int, table: pa.Table) -> Window:
        """Return a window from the rows of a rank, as `cut` yields them."""
        sizes = np.frombuffer(table.schema.metadata[STEP_SIZES], np.int64)
        key = self.windows.token_key(number)
        return Window(self.windows.steps(number), self.rows([table], key), sizes, key)

    def step_rows(self, step: int) -> Ints:
        """Return the numbers in the split of the rows of a step over all ranks (G,). Reads the window again."""
        number = self.windows.window_of(step)
        table = self.read(number)
        positions = self.batches(number, self.rows([table]))[step - self.windows.steps(number).start]
        numbers: Ints = table[NUMBER].to_numpy()[positions]
        return numbers


@dataclass(frozen=True)
class ScoringReader(SplitReader):
    """Reader of a split that is scored: unshuffled, each row once over all ranks."""

    max_tokens: int
    """Approximate tokens of a window."""

    @cached_property
    def _windows(self) -> list[list[Piece]]:
        """The row groups of each window."""
        groups = row_groups(tuple(shard.rows for shard in self.shards))
        tokens = [
            np.array(shard.group_tokens) * (1 + shard.target_tokens / max(1, shard.tokens)) for shard in self.shards
        ]
        ends = np.cumsum(np.concatenate(tokens))
        windows: dict[int, list[Piece]] = {}
        for (shard, group, first, rows), end in zip(groups.tolist(), ends.tolist(), strict=True):
            windows.setdefault(int((end - 1) // self.max_tokens), []).append(Piece(shard, group, 0, rows, first))
        return list(windows.values())

    @property
    def num_windows(self) -> int:
        return len(self._windows)

    def read(self, window: int) -> pa.Table:
        return self.read_pieces(self._windows[window])

    def cut(self, window: int, table: pa.Table, ranks: Sequence[int], world_size: int) -> Iterator[pa.Table]:
        by_length = np.argsort(-self.rows([table]).lengths.astype(np.int64), kind="stable")
        for rank in ranks:
            yield table.take(pa.array(sampler.rank_share(by_length, rank, world_size)))


class WindowSource(Protocol):
    """Source of the windows of one rank."""

    def train(self, steps: range, rank: int, world_size: int) -> Iterator[Window]:
        """Yield the windows of these steps. The first and the last may have further steps."""

    def scoring(self, split: str, rank: int, world_size: int) -> Iterator[Rows]:
        """Yield this rank's rows of a split, longest first within a window, each row once over all ranks."""


class LocalWindows:
    """Source that reads the shards in this process, one window ahead in a thread."""

    def __init__(self, train: TrainReader, scoring: dict[str, ScoringReader]) -> None:
        self._train, self._scoring = train, scoring
        self._tables: dict[str, pa.Table] = {}
        """The rows of splits of a single window, which are read once."""

    def train(self, steps: range, rank: int, world_size: int) -> Iterator[Window]:
        reader, windows = self._train, self._train.windows
        numbers = range(windows.window_of(steps.start), windows.window_of(steps.stop - 1) + 1) if steps else range(0)
        for number, table in self._cut("train", reader, numbers, rank, world_size):
            yield reader.window(number, table)
            del table

    def scoring(self, split: str, rank: int, world_size: int) -> Iterator[Rows]:
        reader = self._scoring[split]
        for _, table in self._cut(split, reader, range(reader.num_windows), rank, world_size):
            yield reader.rows([table])

    def _cut(
        self, split: str, reader: Reader, numbers: range, rank: int, world_size: int
    ) -> Iterator[tuple[int, pa.Table]]:
        def own_rows(number: int) -> pa.Table:
            table = self._tables.get(split)
            if table is None:
                table = reader.read(number)
                if reader.num_windows == 1:
                    self._tables[split] = table
            return next(reader.cut(number, table, [rank], world_size))

        def cut() -> Iterator[tuple[int, pa.Table]]:
            for number in numbers:
                rows = own_rows(number)
                pa.default_memory_pool().release_unused()
                yield number, rows
                del rows  # this generator waits for a whole window here

        return pipeline.prefetch(cut(), depth=1)
