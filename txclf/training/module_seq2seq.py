"""The LightningModule of `task: seq2seq`: teacher forcing, a loss for each target token.

Shapes: B rows, S source tokens, U target tokens with `[BOS]` and `[EOS]`, V target vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from txclf.config.run_config import RunConfig
from txclf.data.batches import PairBatch
from txclf.model.seq2seq import Seq2SeqTransformer
from txclf.training.data_module import ShardsDataModule
from txclf.training.module import TrainingModule

PADDING = -100
"""Target of a position that holds no token to predict."""


class Seq2SeqModule(TrainingModule):
    """Module of `task: seq2seq`: the loss of a step is the mean over the target tokens of its global batch.

    In validation each token is predicted from the true ones before it. A row whose tokens are all right is what greedy
    search would produce, so the share of these is the exact match of greedy outputs. Metrics: `loss`, `perplexity`,
    `token_accuracy`, `exact_match`, `rows`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        vocab_size: int,
        target_vocab_size: int,
        total_steps: int | None = None,
        start_step: int = 0,
    ) -> None:
        shared = config.tokenizer.target == "shared"
        length = config.tokenizer.max_length
        model = Seq2SeqTransformer(config.model, vocab_size, target_vocab_size, length, shared)
        super().__init__(config, model, total_steps=total_steps, start_step=start_step)
        self.sums: Tensor
        """Loss, tokens, right tokens, rows, and rows whose tokens are all right."""
        self.register_buffer("sums", torch.zeros(5, dtype=torch.float64), persistent=False)

    @classmethod
    def from_data(
        cls,
        data: ShardsDataModule,
        *,
        total_steps: int | None = None,
        start_step: int = 0,
    ) -> Self:
        """Return a new module for prepared data."""
        sizes = {"vocab_size": data.manifest.vocab_size, "target_vocab_size": data.manifest.target_vocab_size}
        return cls(data.run, **sizes, total_steps=total_steps, start_step=start_step)

    def summed_loss(self, batch: Any) -> Tensor:
        """Return the training loss, summed over the target tokens."""
        logits_BUV, wanted_BU = self.predict_targets(batch)
        smoothing = self.config.train.label_smoothing
        return F.cross_entropy(
            logits_BUV.flatten(0, 1),
            wanted_BU.flatten(),
            ignore_index=PADDING,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def predict_targets(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return logits (B, U - 1, V) and the tokens to predict (B, U - 1), `PADDING` after a row's end."""
        target_BU = batch["target_ids"]
        inside = torch.arange(1, target_BU.shape[1], device=target_BU.device) < batch["target_lengths"][:, None]
        logits_BUV = self.network(batch["input_ids"], batch["mask"], target_BU[:, :-1])
        return logits_BUV, target_BU[:, 1:].masked_fill(~inside, PADDING)

    def reset_scores(self) -> None:
        """Forget the rows scored so far."""
        self.sums.zero_()

    def update_scores(self, batch: Any) -> None:
        """Score the rows of a batch."""
        logits_BUV, wanted_BU = self.predict_targets(batch)
        loss = F.cross_entropy(logits_BUV.flatten(0, 1), wanted_BU.flatten(), ignore_index=PADDING, reduction="sum")
        inside_BU, right_BU = wanted_BU != PADDING, logits_BUV.argmax(dim=-1) == wanted_BU
        rows_right = (right_BU | ~inside_BU).all(dim=1)
        values = [loss, inside_BU.sum(), (right_BU & inside_BU).sum(), torch.tensor(len(inside_BU)), rows_right.sum()]
        self.sums += torch.stack([value.to(self.sums) for value in values])

    def compute_scores(self) -> dict[str, float]:
        """Return the metrics of all rows scored on all ranks."""
        # Sums are added over ranks once; a mean of each rank's means would weigh tokens unevenly.
        loss, tokens, right, rows, rows_right = self.reduce_sum(self.sums).tolist()
        return {
            "loss": loss / tokens,
            "perplexity": math.exp(min(loss / tokens, 700.0)),
            "token_accuracy": right / tokens,
            "exact_match": rows_right / rows,
            "rows": int(rows),
        }
