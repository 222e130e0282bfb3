"""The modules and the data module in plain Lightning programs: a `pl.Trainer`, one device and DDP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import txclf
from tests.helpers.runs import tiny
from txclf.config import recipes
from txclf.core.errors import ConfigError
from txclf.data import shards
from txclf.training import ClassifierModule, ShardsDataModule

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning", "ignore::UserWarning:lightning_fabric"
)
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class MyModule(ClassifierModule):
    """A researcher's module: the loss has a term of its own."""

    def training_loss(self, logits_BC: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        confidence = logits_BC.logsumexp(dim=1).square().sum()  # z-loss, arXiv:2202.08906
        return super().training_loss(logits_BC, labels) + 1e-4 * confidence


@pytest.fixture
def data_module(tmp_path: Path, data: str) -> ShardsDataModule:
    run = tiny(tmp_path, data, f"data.test={data}")
    return ShardsDataModule(run, txclf.prepare(run))


def test_subclass_fits_with_the_callbacks_and_the_logger_of_lightning(
    tmp_path: Path, data_module: ShardsDataModule
) -> None:
    module = MyModule.from_data(data_module)
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="valid_loss")
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[best, EarlyStopping("valid_loss", patience=3)],
        logger=TensorBoardLogger(tmp_path, name="logs"),
        log_every_n_steps=1,
        **QUIET,
    )
    trainer.fit(module, data_module)
    steps = data_module.steps_per_epoch
    assert (trainer.global_step, trainer.current_epoch) == (2 * steps, 2)
    assert set(trainer.callback_metrics) >= {"train_loss", "valid_loss", "valid_accuracy", "valid_f1_macro"}
    assert best.best_model_score == pytest.approx(module.valid_metrics["valid_loss"], rel=1e-5)
    events = EventAccumulator(str(tmp_path / "logs/version_0")).Reload()
    losses = [event.value for event in events.Scalars("train_loss")]
    assert len(losses) == 2 * steps
    assert losses[-1] < losses[0]
    loaded = MyModule.from_data(data_module)
    loaded.load_state_dict(torch.load(best.best_model_path, weights_only=False)["state_dict"])
    (scores,) = pl.Trainer(logger=False, **QUIET).test(loaded, data_module, verbose=False)
    assert scores["test_rows"] == 300
    assert scores["test_accuracy"] > 0.8


def test_plain_trainer_takes_the_steps_of_a_run(tmp_path: Path, data: str) -> None:
    words = ["model.dropout=0", "train.epochs=1"]
    run = tiny(tmp_path, data, *words)
    txclf.train(run)
    log = [json.loads(line) for line in Path(run.run_folder, "metrics.jsonl").read_text().splitlines()]
    expected = [line["train_loss"] for line in log if "train_loss" in line]

    class Losses(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            self.seen.append(float(trainer.callback_metrics["train_loss"]))

    torch.manual_seed(run.seed)
    data_module = ShardsDataModule(run, txclf.prepare(run))
    losses = Losses()
    trainer = pl.Trainer(max_epochs=1, callbacks=[losses], logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(ClassifierModule.from_data(data_module), data_module)
    assert losses.seen == pytest.approx(expected, rel=1e-6)


def test_keys_that_follow_from_the_rows_are_those_of_a_run(tmp_path: Path, data: str) -> None:
    run = txclf.load_config({"data": {"train": data}, "storage": str(tmp_path), "tokenizer": {"vocab_size": 300}})
    prepared = txclf.prepare(run)
    settled = ShardsDataModule(run, prepared).run
    rows = shards.load_manifest(prepared).splits["train"].rows
    assert settled == recipes.with_recipe(run, rows, 2) != run
    assert settled.train.token_dropout == 0.3
    module = ClassifierModule.from_data(ShardsDataModule(run, prepared))
    assert module.config == settled


def test_trainer_that_accumulates_parts_of_steps_is_refused(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.micro_batches=2")
    data_module = ShardsDataModule(run, txclf.prepare(run))
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **QUIET)
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches=2"):
        trainer.fit(ClassifierModule.from_data(data_module), data_module)


@pytest.mark.parametrize(("parts", "world_size", "most"), [(1, 1, 16), (1, 2, 8), (2, 3, 8), (16, 1, 8)])
def test_scoring_batches_have_the_rows_of_a_training_batch_or_eight(
    tmp_path: Path, data: str, parts: int, world_size: int, most: int
) -> None:
    run = tiny(tmp_path, data, "train.batch_size=16", f"train.micro_batches={parts}")
    data_module = ShardsDataModule(run, txclf.prepare(run))
    rows = 0
    for rank in range(world_size):
        data_module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        sizes = [len(batch["input_ids"]) for batch in data_module.val_dataloader()]
        assert max(sizes) == most
        rows += sum(sizes)
    assert rows == data_module.manifest.splits["valid"].rows


PROGRAM = """
import sys
import pytorch_lightning as pl
import torch
import txclf
from txclf.training import ClassifierModule, ShardsDataModule

run = txclf.load_config(sys.argv[1])
data = ShardsDataModule(run, txclf.prepare(run))
pl.seed_everything(1, verbose=False)
devices = int(sys.argv[2])
trainer = pl.Trainer(
    max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
module = ClassifierModule.from_data(data)
trainer.fit(module, data)
if trainer.is_global_zero:
    print("RESULT", module.valid_metrics["valid_loss"], module.valid_metrics["valid_rows"])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # otherwise gloo's threads may abort the exit
"""


def test_ddp_of_lightning_takes_the_same_steps_on_two_devices(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "model.dropout=0")
    txclf.prepare(run)
    from txclf.config import run_config

    (tmp_path / "run.yaml").write_text(run_config.dump(run))
    (tmp_path / "program.py").write_text(PROGRAM)
    results = []
    for devices in ("1", "2"):
        command = [sys.executable, "-W", "ignore", "program.py", "run.yaml", devices]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")))
    assert results[0][1] == results[1][1]  # each validation row once
    assert float(results[0][0]) == pytest.approx(float(results[1][0]), rel=1e-3)
