"""What a worker is told: the run, its data, and its place among the workers. Light, so that the driver of a run on Ray
need not import what only workers use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.batches import PairRows, Rows, TokenRows
from txclf.data.sampler import Layout
from txclf.data.word_vectors import Coverage
from txclf.training.progress import Heartbeat

if TYPE_CHECKING:
    from pytorch_lightning.strategies import Strategy

COLUMNS = {
    "classify": ("input_ids", "label"),
    "multilabel": ("input_ids", "labels"),
    "seq2seq": ("input_ids", "target_ids"),
}
"""Of the shards, that a worker reads."""


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker is told. Plain data, so that it travels."""

    config: RunConfig
    prepared: str
    started: float
    """Wall-clock time at which the command began."""
    id: str
    """Names this command's temporary files."""
    vectors: Coverage | None = None
    """What the tokens' vectors begin as."""

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS[self.config.task]

    def rows(self, tables: Sequence[pa.Table]) -> Rows:
        """Tables of these columns as rows to make batches of."""
        return (
            PairRows.from_tables(tables) if self.config.task == "seq2seq" else TokenRows(tables, layout=self.layout())
        )

    def layout(self) -> Layout:
        """How rows become sequences."""
        run, windows = self.config, self.config.data.truncation == "windows"
        return Layout(
            window=run.tokenizer.max_length if windows else None,
            overlap=run.data.window_overlap if windows else 0,
            separator=self.manifest().separator_id if run.num_segments else None,
        )

    def manifest(self) -> shards.Manifest:
        """Of the prepared data, as this run trains on them."""
        manifest = shards.load_manifest(self.prepared)
        return shards.with_valid(manifest) if self.config.train.train_on_valid else manifest


@dataclass(frozen=True)
class DistributedContext:
    """This process among the workers."""

    rank: int = 0
    world_size: int = 1
    strategy: Strategy | str = "auto"
    plugins: tuple[Any, ...] = ()
    pulse: Heartbeat = field(default_factory=Heartbeat)
