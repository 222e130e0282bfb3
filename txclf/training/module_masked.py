"""The LightningModule that trains an encoder to predict masked tokens, before a model from scratch learns the labels.

Shapes: M masked tokens, D size of a token vector.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from txclf.core import storage
from txclf.core.errors import StorageError
from txclf.model.classifier import TransformerClassifier
from txclf.model.masked_tokens import MaskedTokenModel
from txclf.training.data_module import ShardsDataModule
from txclf.training.module import TrainingModule


class MaskedTokenModule(TrainingModule):
    """Module of `train.pretrain_epochs`. The loss of a step is the mean over its masked tokens.

    Metrics: `loss`, the mean cross-entropy of the masked tokens, and `rows`.
    """

    model: MaskedTokenModel

    @classmethod
    def from_data(
        cls, data: ShardsDataModule, *, total_steps: int | None = None, start_step: int = 0
    ) -> MaskedTokenModule:
        """Return a new module for prepared data whose tokens are masked."""
        run, manifest = data.run, data.manifest
        segments = 0 if manifest.separator_id is None else run.num_segments
        encoder = TransformerClassifier(
            run.model, manifest.vocab_size, len(manifest.labels), run.tokenizer.max_length, segments
        )
        for part in (encoder.pooling, encoder.head):  # which learn nothing here
            part.requires_grad_(False)
        return cls(run, MaskedTokenModel(encoder), total_steps=total_steps, start_step=start_step)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sums: Tensor
        """Loss, masked tokens and rows."""
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)

    def summed_loss(self, batch: Any) -> Tensor:
        """Return the loss, summed over the masked tokens."""
        vectors_MD = self.network(batch["input_ids"], batch["mask"], batch["segments"])
        return self.model.loss(vectors_MD, batch["input_ids"])

    def reset_scores(self) -> None:
        """Forget the rows scored so far."""
        self.sums.zero_()

    def update_scores(self, batch: Any) -> None:
        """Score the rows of a batch."""
        masked = (batch["input_ids"] < 0).sum()
        values = [self.summed_loss(batch), masked, torch.tensor(len(batch["labels"]))]
        self.sums += torch.stack([value.to(self.sums) for value in values])

    def compute_scores(self) -> dict[str, float]:
        """Return the metrics of all rows scored on all ranks."""
        loss, masked, rows = self.reduce_sum(self.sums).tolist()
        return {"loss": loss / max(1.0, masked), "rows": int(rows)}


def start_from(model: nn.Module, path: str) -> None:
    """Give the encoder of a classifier the weights of an encoder that has learned to predict masked tokens.

    Raises `StorageError` if the file is missing or damaged.
    """
    try:
        weights = load(storage.read_bytes(path))
    except SafetensorError as error:
        folder = storage.folder_of(path)
        raise StorageError(
            f"`{path}`: damaged: {error}. Remove `{folder}` and pass --resume to train the encoder again."
        ) from None
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.split(".")[0] in ("pooling", "head") for name in missing), missing
