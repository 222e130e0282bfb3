"""Prepared shards as batches for the LightningModules of txclf, in a run or in a Lightning program of your own.

    data = ShardsDataModule(run, prepared)
    module = ClassifierModule.from_data(data)
    pl.Trainer(max_epochs=2).fit(module, data)

An epoch of the trainer is an epoch of the data. In a run of txclf a `TrainState` is given, and an epoch of the trainer
lasts from the step reached to the next validation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import pytorch_lightning as pl

from txclf.config.run_config import RunConfig
from txclf.data import sampler as samplers
from txclf.data import shards
from txclf.data.batches import Batch, PairBatch, Rows, TokenRows
from txclf.data.sampler import BatchSampler
from txclf.data.word_vectors import Coverage
from txclf.training import mfu
from txclf.training.job import WorkerConfig
from txclf.training.train_state import TrainState


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
        read_rows: Callable[[str], Rows] | None = None,
    ) -> None:
        """`read_rows(split)` returns the rows of a split; by default they are read into memory.

        `vectors` are word vectors that were matched with the vocabulary before.
        """
        super().__init__()
        self.run, self.prepared, self.state, self.vectors = run, prepared, state, vectors
        self.manifest = WorkerConfig(run, prepared).manifest()
        self._read_rows = read_rows or self._read_into_memory
        self._rows: dict[str, Rows] = {}

    def rows(self, split: str) -> Rows:
        """Return the rows of `train`, `valid` or `test`, read once."""
        if split not in self._rows:
            self._rows[split] = self._read_rows(split)
        return self._rows[split]

    @cached_property
    def sampler(self) -> BatchSampler:
        """The rows of every step."""
        rows, train = self.rows("train"), self.run.train
        labels = shortened = None
        if train.sampling == "balanced" and isinstance(rows, TokenRows):
            labels = rows.labels
        if train.token_dropout and isinstance(rows, TokenRows):
            shortened = partial(rows.kept_lengths, train.token_dropout)
        return BatchSampler(
            rows.lengths,
            train.batch_size,
            bucket_batches=train.bucket_batches,
            seed=self.run.seed,
            labels=labels,
            lengths_of=shortened,
        )

    def setup(self, stage: str) -> None:
        """Read the splits that a stage of the trainer needs."""
        for split in {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",)}.get(stage, ()):
            self.rows(split)

    def train_dataloader(self) -> TrainBatches:
        """Return this rank's training batches."""
        return EpochBatches(self) if self.state is None else TrainBatches(self)

    def val_dataloader(self) -> ScoringBatches:
        """Return this rank's share of the validation rows."""
        return self._scoring_batches("valid")

    def test_dataloader(self) -> ScoringBatches:
        """Return this rank's share of the test rows."""
        return self._scoring_batches("test")

    def padding_share(self, world_size: int) -> float:
        """Return the share of positions without a token in the first steps of the first epoch."""
        self.sampler.rows(0)
        batches, lengths = self.sampler.batches[:1000], self.sampler.epoch_lengths
        return self.rows("train").padding_share(batches, world_size, self.run.train.micro_batches, lengths)

    def _scoring_batches(self, split: str) -> ScoringBatches:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return ScoringBatches(self.rows(split), self.run.train.batch_size, rank, world_size)

    def _read_into_memory(self, split: str) -> Rows:
        config = WorkerConfig(self.run, self.prepared)
        return config.rows([shards.read_split(self.prepared, self.manifest, split, config.columns)])


class TrainBatches:
    """This rank's batches from the step that the `TrainState` has reached to the next validation, at each pass.

    It has no length, because the passes differ.
    """

    def __init__(self, data: ShardsDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state = self.data.state
        assert state is not None
        steps = range(state.step, state.schedule.next_validation(state.step))
        target_vocab, run = self.data.manifest.target_vocab_size, self.data.run
        batches, start = self._batches(steps), time.perf_counter()
        for batch in batches:
            state.timing.flops += mfu.training_flops(run.model, run.train, batch, target_vocab)  # type: ignore[arg-type]
            state.timing.data += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def _batches(self, steps: range) -> Iterator[dict[str, Any]]:
        data, train = self.data, self.data.run.train
        assert data.trainer is not None
        rank, world_size = data.trainer.global_rank, data.trainer.world_size
        rows, sampler = data.rows("train"), data.sampler
        for step in steps:
            chosen = sampler.rows(step)
            step_size = rows.step_size(chosen)
            for part in samplers.rank_parts(chosen, rank, world_size, train.micro_batches):
                batch = rows.batch(part, train.token_dropout, sampler.key(sampler.epoch))
                yield {**batch, "step_size": step_size}


class EpochBatches(TrainBatches):
    """This rank's batches of the trainer's current epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert self.data.trainer is not None
        steps = self.data.sampler.steps_per_epoch
        first = self.data.trainer.current_epoch * steps
        return self._batches(range(first, first + steps))

    def __len__(self) -> int:
        return self.data.sampler.steps_per_epoch * self.data.run.train.micro_batches


class ScoringBatches:
    """A rank's share of rows to score, each row once over all ranks."""

    def __init__(self, rows: Rows, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows, self.batch_size, self.rank, self.world_size = rows, batch_size, rank, world_size

    def __iter__(self) -> Iterator[Batch | PairBatch]:
        rows = self.rows
        for part in samplers.scoring_batches(rows.lengths, self.batch_size, self.rank, self.world_size, rows.costs):
            yield rows.batch(part)
