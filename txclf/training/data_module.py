"""Prepared shards as batches for the LightningModules of txclf, in a run or in a Lightning program of your own.

    data = ShardsDataModule(run, prepared)
    module = ClassifierModule.from_data(data)
    pl.Trainer(max_epochs=2).fit(module, data)

An epoch of the trainer is an epoch of the data. In a run of txclf a `TrainState` is given, and an epoch of the trainer
lasts from the step reached to the next validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch import distributed

from txclf.config import recipes
from txclf.config.run_config import RunConfig
from txclf.data import sampler, shards
from txclf.data.batches import Batch, PairBatch
from txclf.data.sidecars import Sidecar
from txclf.data.window_reader import LocalWindows, Window, WindowSource
from txclf.data.word_vectors import Coverage
from txclf.model.pretrained import PretrainedClassifier
from txclf.training import mfu, pretrained_network, row_sidecars
from txclf.training.job import WorkerConfig
from txclf.training.train_state import TrainState

SCORED_ROWS = 8
"""A device scores at least so many rows at once, if a batch has them."""


class ShardsDataModule(pl.LightningDataModule):
    """Batches of prepared data: the same steps on any number of ranks, each validation row once over all ranks.

    A batch is a dict with `input_ids` (B, T), `mask` (B, T) or None, `labels`, `num_tokens` (real tokens) and, for
    training, `step_size`: the rows of the global batch over all ranks (target tokens for `seq2seq`).

    Raises `DataError` if `prepared` is not a complete folder.
    """

    def __init__(
        self,
        run: RunConfig,
        prepared: str,
        *,
        state: TrainState | None = None,
        vectors: Coverage | None = None,
        source: WindowSource | None = None,
        encoder: str | None = None,
        sidecars: tuple[Sidecar, ...] | None = None,
        masked: float = 0.0,
    ) -> None:
        """Read the manifest, and set `run` to the run with the keys that follow from the rows.

        `source` yields the rows; by default the shards are read in this process.

        `vectors` are word vectors that were matched with the vocabulary before. `encoder` is the stored folder of a
        pretrained model; by default it is found by its name. `sidecars` are further columns of the rows; by
        default they are computed if they are not stored yet. `masked` is the share of the tokens that are masked.
        """
        super().__init__()
        manifest = shards.load_manifest(prepared)
        run = recipes.with_recipe(run, manifest.splits["train"].rows, len(manifest.labels))
        self.run, self.prepared, self.state, self.vectors, self.encoder = run, prepared, state, vectors, encoder
        config = WorkerConfig(run, prepared, sidecars=sidecars or (), masked=masked)
        if sidecars is None:
            config = row_sidecars.ready(config)
        self.manifest = config.manifest()
        self.reader = config.train_reader()
        self.source = source or LocalWindows(
            self.reader, {split: config.scoring_reader(split) for split in self.manifest.splits}
        )

    def pretrained_network(self) -> PretrainedClassifier:
        """Return the network of `model.pretrained`. All ranks call it together."""
        stored = self.encoder or pretrained_network.store(self.run).folder
        world_size = distributed.get_world_size() if distributed.is_initialized() else 1
        resumed = self.state is not None and self.state.step > 0
        network = pretrained_network.network(stored, self.run, self.manifest, world_size=world_size, resumed=resumed)
        if self.state is not None:
            self.state.notes += network.notes  # those of rank 0 are shown
        return network

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch of the data."""
        return self.reader.windows.steps_per_epoch

    def train_dataloader(self) -> TrainBatches:
        """Return this rank's training batches."""
        return EpochBatches(self) if self.state is None else TrainBatches(self)

    def val_dataloader(self) -> ScoringBatches:
        """Return this rank's share of the validation rows."""
        return self._scoring_batches("valid")

    def test_dataloader(self) -> ScoringBatches:
        """Return this rank's share of the test rows."""
        return self._scoring_batches("test")

    def _scoring_batches(self, split: str) -> ScoringBatches:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        train = self.run.train
        # A device holds no more rows than in training, or few: scoring keeps nothing for a backward pass.
        size = max(-(-train.batch_size // (world_size * train.micro_batches)), min(SCORED_ROWS, train.batch_size))
        return ScoringBatches(self.source, split, size, rank, world_size)


class TrainBatches:
    """This rank's batches from the step that the `TrainState` has reached to the next validation, at each pass.

    It has no length, because the passes differ. All passes read one stream of windows, so none waits for the start of
    another.
    """

    def __init__(self, data: ShardsDataModule) -> None:
        self.data = data
        self.windows: Iterator[Window] | None = None
        self.window: Window | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state = self.data.state
        assert state is not None
        schedule, timing = state.schedule, state.timing
        steps = range(state.step, schedule.next_validation(state.step))
        if self.windows is None:
            self.windows = self._open(range(state.step, schedule.total_steps))
        target_vocab, run = self.data.manifest.target_vocab_size, self.data.run
        batches, start = self._batches(steps), time.perf_counter()
        for batch in batches:
            if "encoded" not in batch:  # the head alone is negligible
                timing.flops += mfu.training_flops(run.model, run.train, batch, target_vocab)  # type: ignore[arg-type]
            if timing.first_step:  # before it, Lightning fetches the first batch: that is part of the start
                timing.data += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def _open(self, steps: range) -> Iterator[Window]:
        trainer = self.data.trainer
        assert trainer is not None
        return self.data.source.train(steps, trainer.global_rank, trainer.world_size)

    def _batches(self, steps: range) -> Iterator[dict[str, Any]]:
        train = self.data.run.train
        for step in steps:
            window = self._window(step)
            for part in window.parts(step, train.micro_batches):
                batch = window.rows.batch(part, train.token_dropout, window.token_key)
                yield {**batch, "step_size": window.step_size(step)}

    def _window(self, step: int) -> Window:
        """Return the window of a step, which follows the step before."""
        assert self.windows is not None
        while self.window is None or step not in self.window.steps:
            self.window = None  # its rows are freed before the next window comes
            self.window = next(self.windows)
        return self.window


class EpochBatches(TrainBatches):
    """This rank's batches of the trainer's current epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert self.data.trainer is not None
        first = self.data.trainer.current_epoch * self.data.steps_per_epoch
        steps = range(first, first + self.data.steps_per_epoch)
        self.window, self.windows = None, self._open(steps)
        return self._batches(steps)

    def __len__(self) -> int:
        return self.data.steps_per_epoch * self.data.run.train.micro_batches


class ScoringBatches:
    """A rank's share of a split to score, each row once over all ranks."""

    def __init__(self, source: WindowSource, split: str, batch_size: int, rank: int, world_size: int) -> None:
        self.source, self.split, self.batch_size = source, split, batch_size
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch | PairBatch]:
        for rows in self.source.scoring(self.split, self.rank, self.world_size):
            for part in sampler.scoring_batches(rows.lengths, self.batch_size, rows.costs):
                yield rows.batch(part)
