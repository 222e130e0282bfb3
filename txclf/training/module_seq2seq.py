"""The LightningModule of `task: seq2seq`: teacher forcing, a loss for each target token.

Shapes: B rows, S source tokens, U target tokens with `[BOS]` and `[EOS]`, V target vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from txclf.config.run_config import RunConfig
from txclf.data.batches import PairBatch
from txclf.model.seq2seq import Seq2SeqTransformer
from txclf.training.module import TrainingModule

NOTHING = -100
"""In place of a token that is not there to be predicted."""


class Seq2SeqModule(TrainingModule):
    """Trains a `Seq2SeqTransformer`: the loss of a step is the mean over the target tokens of its global batch.

    In validation each token is predicted from the true ones before it. A row whose tokens are all right is what greedy
    search would produce, so the share of these is the exact match of greedy outputs.
    """

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        target_vocab_size: int,
        total_steps: int,
        start_step: int = 0,
        world_size: int = 1,
    ) -> None:
        shared = config.tokenizer.target == "shared"
        length = config.tokenizer.max_length
        model = Seq2SeqTransformer(config.model, vocab_size, target_vocab_size, length, shared)
        super().__init__(config, model, total_steps, start_step, world_size)
        self.sums: Tensor
        """Of a validation: loss, tokens, right tokens, rows, rows all right."""
        self.register_buffer("sums", torch.zeros(5, dtype=torch.float64), persistent=False)

    def summed_loss(self, batch: Any) -> Tensor:
        """The training loss, summed over the target tokens."""
        logits_BUV, wanted_BU = self.predict_targets(batch)
        smoothing = self.config.train.label_smoothing
        return F.cross_entropy(
            logits_BUV.flatten(0, 1),
            wanted_BU.flatten(),
            ignore_index=NOTHING,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def predict_targets(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Logits (B, U - 1, V) and the tokens (B, U - 1) that they are to predict, `NOTHING` beyond a row's end."""
        target_BU = batch["target_ids"]
        inside = torch.arange(1, target_BU.shape[1], device=target_BU.device) < batch["target_lengths"][:, None]
        logits_BUV = self.network(batch["input_ids"], batch["mask"], target_BU[:, :-1])
        return logits_BUV, target_BU[:, 1:].masked_fill(~inside, NOTHING)

    def on_validation_epoch_start(self) -> None:
        self.sums.zero_()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        logits_BUV, wanted_BU = self.predict_targets(batch)
        loss = F.cross_entropy(logits_BUV.flatten(0, 1), wanted_BU.flatten(), ignore_index=NOTHING, reduction="sum")
        there, right = wanted_BU != NOTHING, logits_BUV.argmax(dim=-1) == wanted_BU
        rows_right = (right | ~there).all(dim=1)
        found = [loss, there.sum(), (right & there).sum(), torch.tensor(len(there)), rows_right.sum()]
        self.sums += torch.stack([value.to(self.sums) for value in found])

    def on_validation_epoch_end(self) -> None:
        # Sums are added over ranks once; a mean of each rank's means would weigh tokens unevenly.
        loss, tokens, right, rows, rows_right = self.trainer.strategy.reduce(self.sums, reduce_op="sum").tolist()
        self.valid_metrics = {
            "valid_loss": loss / tokens,
            "valid_perplexity": math.exp(min(loss / tokens, 700.0)),
            "valid_token_accuracy": right / tokens,
            "valid_exact_match": rows_right / rows,
            "valid_rows": int(rows),
        }
