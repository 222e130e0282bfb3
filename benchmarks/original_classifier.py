"""Train the classifier that txclf grew out of, as it was written: `nn.TransformerEncoder` in plain Lightning.

    .venv/bin/python benchmarks/original_classifier.py jobs/seed_classifier.yaml data.train=FILE data.test=FILE

The run file gives the shape, the rows, the vocabulary and the number of epochs. Data are prepared as in `txclf train`,
so only the model's code and the training differ. As in the original, rows come in random batches padded to their
longest row, `micro_batches` of them make a step, AdamW decays every parameter, one-cycle starts at a tenth of the peak,
and the checkpoint with the best validation accuracy is scored. Figures: docs/benchmarks.md.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.model.layers import sinusoids

Row = tuple[Tensor, int]


class OriginalClassifier(pl.LightningModule):
    """Embedding, sinusoidal positions, `nn.TransformerEncoder` (post-norm, ReLU), mean, hidden head."""

    def __init__(self, run: RunConfig, vocab_size: int, num_classes: int, total_steps: int) -> None:
        super().__init__()
        model, self.train_settings, self.total_steps = run.model, run.train, total_steps
        self.embedding = nn.Embedding(vocab_size, model.hidden_size)
        self.register_buffer("positions", sinusoids(run.tokenizer.max_length, model.hidden_size), persistent=False)
        layer = nn.TransformerEncoderLayer(
            model.hidden_size, model.num_heads, model.intermediate_size, model.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, model.num_layers)
        self.dropout = nn.Dropout(model.dropout)
        self.head = nn.Sequential(
            nn.Linear(model.hidden_size, model.classifier_hidden_size),
            nn.ReLU(),
            nn.Dropout(model.dropout),
            nn.Linear(model.classifier_hidden_size, num_classes),
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        hidden = self.dropout(hidden + self.positions[: ids.shape[1]])  # type: ignore[index]
        hidden = self.encoder(hidden, src_key_padding_mask=~mask)
        hidden = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        logits: Tensor = self.head(hidden)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        ids, mask, labels = batch
        return F.cross_entropy(self(ids, mask), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        ids, mask, labels = batch
        logits = self(ids, mask)
        self.log("valid_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("valid_accuracy", (logits.argmax(dim=1) == labels).float().mean(), batch_size=len(labels))

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        ids, mask, labels = batch
        right = (self(ids, mask).argmax(dim=1) == labels).float().mean()
        self.log("test_accuracy", right, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        peak = self.train_settings.learning_rate
        optimizer = torch.optim.AdamW(self.parameters(), lr=peak / 10)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak, total_steps=self.total_steps, pct_start=0.1, div_factor=10
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def collate(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and mask (B, T), padded to the longest row, and labels (B,)."""
    ids = nn.utils.rnn.pad_sequence([row for row, _ in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row, _ in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None], torch.tensor([label for _, label in rows])


def split_rows(folder: str, manifest: shards.Manifest, split: str) -> list[Row]:
    table = shards.read_split(folder, manifest, split, ["input_ids", "label"])
    ids = [torch.tensor(row) for row in table["input_ids"].to_pylist()]
    return list(zip(ids, table["label"].to_pylist(), strict=True))


def main() -> None:
    torch.set_num_threads(1)
    run = run_config.load(sys.argv[1], sys.argv[2:])
    pl.seed_everything(run.seed)
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    size = run.train.batch_size // run.train.micro_batches
    rows = {split: split_rows(folder, manifest, split) for split in ("train", "valid", "test")}
    loaders: dict[str, Any] = {
        split: DataLoader(
            rows[split],  # type: ignore[arg-type]
            batch_size=size,
            shuffle=split == "train",
            collate_fn=collate,
            num_workers=0,
        )
        for split in rows
    }
    total_steps = run.train.epochs * math.ceil(len(loaders["train"]) / run.train.micro_batches)
    module = OriginalClassifier(run, manifest.vocab_size, len(manifest.labels), total_steps)
    with tempfile.TemporaryDirectory() as scratch:
        best = ModelCheckpoint(scratch, monitor="valid_accuracy", mode="max", save_top_k=3)
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            precision="16-mixed" if torch.cuda.is_available() else "32-true",
            max_epochs=run.train.epochs,
            accumulate_grad_batches=run.train.micro_batches,
            gradient_clip_val=run.train.max_grad_norm,
            callbacks=[best, EarlyStopping("valid_loss", patience=run.train.early_stopping_patience)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.monotonic()
        trainer.fit(module, loaders["train"], loaders["valid"])
        seconds = time.monotonic() - start
        (scores,) = trainer.test(module, loaders["test"], ckpt_path=best.best_model_path, verbose=False)
    tokens = sum(len(row) for row, _ in rows["train"])
    print(
        json.dumps(
            {
                "test_accuracy": round(scores["test_accuracy"], 4),
                "valid_accuracy": round(float(best.best_model_score or 0.0), 4),
                "epochs": run.train.epochs,
                "steps": trainer.global_step,
                "minutes": round(seconds / 60, 1),
                "tokens_per_second": round(tokens * run.train.epochs / seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
