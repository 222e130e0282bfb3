"""Reports of a run's validations to Ray Train, with the committed checkpoints as they are on storage."""

from __future__ import annotations

import pytorch_lightning as pl
import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from txclf.artifacts import checkpoints
from txclf.core import storage
from txclf.training.data_module import ShardsDataModule


class RayReport(pl.Callback):
    """Reports each validation and its checkpoint to Ray Train, after the checkpoint is committed.

    The mode is ASYNC because the others wait until the controller has taken the previous report, at its next health
    check. Ray neither copies nor deletes the checkpoint, because it is in its place already.
    """

    def __init__(self, run_folder: str) -> None:
        self.folder = storage.join(run_folder, "checkpoints")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A new Ray run knows no checkpoint, and a report is lost if a worker dies before the controller takes it.
        known = {
            reported.checkpoint.path
            for reported in ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        }
        saved = {checkpoint.step for checkpoint in checkpoints.committed(self.folder)}
        for validation in _history(trainer):
            checkpoint = self._checkpoint(validation)
            if validation["step"] in saved and checkpoint.path not in known:
                _report(validation, checkpoint)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        validation = _history(trainer)[-1]
        _report(validation, self._checkpoint(validation))

    def _checkpoint(self, validation: dict[str, float]) -> Checkpoint:
        filesystem, path = storage.resolve(checkpoints.path_of(self.folder, int(validation["step"])))
        return Checkpoint(path, filesystem)


def _history(trainer: pl.Trainer) -> list[dict[str, float]]:
    """Return the validations of the run, which every rank has."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ShardsDataModule)
    assert data.state is not None
    return data.state.history


def _report(validation: dict[str, float], checkpoint: Checkpoint) -> None:
    ray.train.report(
        dict(validation),
        checkpoint,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=_keep,
        delete_local_checkpoint_after_upload=False,
    )


def _keep(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Return a checkpoint that is stored where it belongs."""
    return checkpoint
