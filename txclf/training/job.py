"""What a worker needs to know: the run, its data, and its place among the workers.

Light, so that the driver of a run on Ray does not import what only workers use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.batches import TEACHER
from txclf.data.sampler import Layout
from txclf.data.shuffle_windows import ShuffleWindows
from txclf.data.sidecars import Sidecar
from txclf.data.window_reader import ScoringReader, TrainReader
from txclf.data.word_vectors import Coverage
from txclf.training.progress import Heartbeat, Requests

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import Strategy


def _as_it_is(trainer: pl.Trainer) -> pl.Trainer:
    """Return a trainer of one process, which needs no check."""
    return trainer


GPU_MULTIPLE = 8
"""Batches on a GPU are padded to multiples of this. Its kernels are chosen, and some compiled, for each length."""


@dataclass(frozen=True)
class WorkerConfig:
    """A run on prepared data, the same for every worker. Plain data, so that it travels."""

    run: RunConfig
    prepared: str
    """Path or URI of the prepared folder."""
    started: float = 0.0
    """Wall-clock time at which the command began."""
    vectors: Coverage | None = None
    """Word vectors that initialize the token embeddings."""
    encoder: str | None = None
    """Folder of the pretrained model in the storage of the run; None for a model from scratch."""
    taught: str | None = None
    """Folder of that model after it has learned from pairs of rows, from which the run starts."""
    sidecars: tuple[Sidecar, ...] = ()
    """Further columns of the rows."""
    masked: float = 0.0
    """Share of the tokens that are masked, for an encoder that learns to predict them instead of the labels."""
    pretrained_encoder: str | None = None
    """Weights of an encoder that has learned so, from which the model starts."""

    @property
    def first_encoder(self) -> str | None:
        """Folder of the pretrained model from which the run starts: after what it has learned from pairs, if it has."""
        return self.taught or self.encoder

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the shards that a worker reads."""
        return self.run.task_spec.shard_columns

    def layout(self) -> Layout:
        """Return how rows become sequences."""
        from txclf.training.precision import uses_gpu  # and torch

        run, manifest = self.run, self.manifest()
        separator = manifest.separator_id if run.num_segments else None
        special = manifest.special_tokens
        multiple = GPU_MULTIPLE if uses_gpu(run.compute) else 1
        return Layout.of_model(run.tokenizer.max_length, run.truncation, special, separator, multiple)

    def manifest(self) -> shards.Manifest:
        """Return the manifest of the prepared data, as this run trains on them."""
        return self._manifest

    @cached_property
    def _manifest(self) -> shards.Manifest:
        manifest = shards.load_manifest(self.prepared)
        if self.run.train.train_on_valid:
            manifest = shards.with_rows_of(manifest, "valid")
        if (self.run.distill.teacher is not None or self.masked) and shards.UNLABELLED in manifest.splits:
            manifest = shards.with_rows_of(manifest, shards.UNLABELLED)
        return manifest

    def train_reader(self) -> TrainReader:
        """Return the reader of the training rows."""
        run, train, split = self.run, self.run.train, self.manifest().splits["train"]
        # The column `label` says which rows have no label, which an empty list of `labels` does not.
        is_taught = any(sidecar.column == TEACHER for sidecar in self.sidecars)
        columns = tuple(dict.fromkeys([*self.columns, "label"])) if is_taught else self.columns
        return TrainReader(
            self.prepared,
            tuple(split.shards),
            columns,
            self.layout(),
            sidecars=self._sidecars("train"),
            windows=ShuffleWindows.of_split(split, train.batch_size, run.data.shuffle_window, run.seed),
            bucket_batches=train.bucket_batches,
            is_balanced=train.sampling == "balanced",
            token_dropout=train.token_dropout,
            masked=self.masked,
        )

    def scoring_reader(self, split: str) -> ScoringReader:
        """Return the reader of a split to score."""
        shards = tuple(self.manifest().splits[split].shards)
        return ScoringReader(
            self.prepared,
            shards,
            self.columns,
            self.layout(),
            self.run.data.shuffle_window,
            sidecars=self._sidecars(split),
            masked=self.masked,
        )

    def _sidecars(self, split: str) -> tuple[Sidecar, ...]:
        return tuple(sidecar for sidecar in self.sidecars if split in sidecar.splits)


@dataclass(frozen=True)
class DistributedContext:
    """The place of this process among the workers."""

    rank: int = 0
    world_size: int = 1
    strategy: Strategy | str = "auto"
    plugins: tuple[Any, ...] = ()
    """Plugins for Lightning's trainer."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    requests: Requests = field(default_factory=Requests)
    callbacks: tuple[pl.Callback, ...] = ()
    """Callbacks that run after those of every run."""
    prepare: Callable[[pl.Trainer], pl.Trainer] = _as_it_is
    """Check of Lightning's trainer before it fits."""
