"""Trained sequence-to-sequence model: generate a text from each text, without Ray, Lightning or pickle.

from txclf import Seq2Seq
Seq2Seq.load("runs/multi30k/model")(["A man is sleeping."])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch.nn import functional as F

from txclf.config.run_config import RunConfig
from txclf.config.sections import Generate
from txclf.core.errors import BundleError
from txclf.data.batches import PairRows, TokenRows
from txclf.data.sampler import Ints, scoring_batches
from txclf.data.tokenizer import decode, encode, parse_tokenizer, target_ends
from txclf.data.word_cache import WordCache
from txclf.inference import bundle, soundness
from txclf.inference.metadata import BundleMetadata
from txclf.model.beam_search import generate
from txclf.model.seq2seq import Seq2SeqTransformer

Floats = npt.NDArray[np.float32]


class TeacherForced(NamedTuple):
    """Sums over target tokens and rows; those of several sets of rows add up."""

    loss: float = 0.0
    """Summed cross-entropy of the tokens."""
    correct: int = 0
    """Tokens that are predicted correctly."""
    tokens: int = 0
    correct_rows: int = 0
    """Rows whose tokens are all predicted correctly."""
    rows: int = 0

    def scores(self) -> dict[str, float]:
        """Return loss, perplexity and accuracy per token, and the share of correct rows: `teacher_forced_match`."""
        loss = self.loss / self.tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_accuracy": self.correct / self.tokens,
            "teacher_forced_match": self.correct_rows / self.rows,
        }


class Seq2Seq:
    """Trained sequence-to-sequence model that generates a text from each text by beam search."""

    def __init__(
        self,
        metadata: BundleMetadata,
        tokenizers: Sequence[FastTokenizer],
        model: Seq2SeqTransformer,
        device: torch.device | str | None = None,
    ) -> None:
        assert metadata.generate is not None
        self.metadata = metadata
        self.folder = "model"
        """Folder that the model was loaded from, for messages."""
        self.settings: Generate = metadata.generate
        """Settings of the beam search; assign to change them."""
        self.tokenizer, self.target_tokenizer = tokenizers[0], tokenizers[-1]
        self.word_cache = WordCache(self.tokenizer)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)

    @classmethod
    def load(cls, folder: str, device: torch.device | str | None = None) -> Self:
        """Load a bundle from a path or URI, on a GPU if there is one and `device` does not name another device.

        Raises `BundleError` if the folder is not a bundle, is damaged, cannot answer, or holds a classifier.
        """
        metadata, content = bundle.read(folder, seq2seq=True)
        shared = bundle.TARGET_TOKENIZER not in content
        sizes = metadata.vocab_size, metadata.target_vocab_size, metadata.max_length
        layers = metadata.model.num_layers + (metadata.model.num_decoder_layers or metadata.model.num_layers)
        model = bundle.build(lambda: Seq2SeqTransformer(metadata.model, *sizes, shared), content, folder, layers=layers)
        tokenizers = [bundle.tokenizer(content, bundle.TOKENIZER, folder, metadata.vocab_size)]
        if not shared:
            size = metadata.target_vocab_size
            tokenizers.append(bundle.tokenizer(content, bundle.TARGET_TOKENIZER, folder, size))
        elif metadata.target_vocab_size != metadata.vocab_size:
            raise BundleError(f"`{folder}`: one tokenizer for two vocabularies. Copy the whole folder again.")
        loaded = cls(metadata, tokenizers, model, device)
        loaded.folder = folder
        soundness.require_answer(loaded._trial, folder)
        return loaded

    @torch.inference_mode()
    def _trial(self) -> Floats:
        """Return the logits after a trial text, and after the tokens with the largest embeddings."""
        columns = (soundness.TRIAL_TEXT,) * len(self.metadata.text_columns)
        extreme = soundness.extreme_tokens(self.model.embedding.weight, self.metadata.max_length)
        rows = self.rows([pa.table({"input_ids": [self.encode([columns])[0].as_py(), extreme]})])
        ids, mask, *_ = rows.pad(np.arange(2))
        mask = None if mask is None else mask.to(self.device)
        begin = torch.tensor([target_ends(self.target_tokenizer)] * 2, device=self.device)
        logits: Floats = self.model(ids.to(self.device), mask, begin).flatten().cpu().numpy()
        return logits

    @classmethod
    def from_config(cls, run: RunConfig, weights: Mapping[str, torch.Tensor], tokenizers: Sequence[str]) -> Self:
        """Return the model with the weights of a run, without a bundle."""
        metadata = bundle.metadata_from_config(run, (), tokenizers)
        sizes = metadata.vocab_size, metadata.target_vocab_size, metadata.max_length
        model = Seq2SeqTransformer(metadata.model, *sizes, len(tokenizers) == 1)
        model.load_state_dict(weights)
        return cls(metadata, [parse_tokenizer(text) for text in tokenizers], model)

    def __call__(self, texts: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> list[str]:
        """Return the output for each text, or row of text columns, in their order.

        Raises `TypeError` for a bare string and for other numbers of columns.
        """
        return self.outputs(texts, batch_size)

    def outputs(self, texts: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> list[str]:
        """Return the output for each text, or row of text columns, in their order."""
        return self.generate(
            self.rows([pa.table({"input_ids": self.encode(self.metadata.as_rows(texts))})]), batch_size
        )

    def encode(self, texts: Sequence[tuple[str, ...]]) -> pa.ListArray:
        """Return the token ids of rows of text columns, truncated as in training."""
        return encode(self.word_cache, texts, self.metadata.max_length, self.metadata.truncation)[0]

    def rows(self, tables: Sequence[pa.Table]) -> TokenRows:
        """Return tables of `input_ids` as input rows of this model."""
        return TokenRows(tables)

    def teacher_forced(self, rows: PairRows, batch_size: int = 64) -> dict[str, float]:
        """Return the scores of the target tokens, each predicted from the true tokens before it."""
        return self.teacher_forced_sums(rows, batch_size).scores()

    @torch.inference_mode()
    def teacher_forced_sums(self, rows: PairRows, batch_size: int = 64) -> TeacherForced:
        """Return the sums that the scores of the target tokens follow from."""
        loss, correct, tokens, correct_rows = 0.0, 0, 0, 0
        for numbers in scoring_batches(rows.lengths, batch_size):
            batch = rows.batch(numbers)
            mask = None if batch["mask"] is None else batch["mask"].to(self.device)
            target_BU = batch["target_ids"].to(self.device)
            logits_BUV = self.model(batch["input_ids"].to(self.device), mask, target_BU[:, :-1])
            valid_BU = torch.arange(1, target_BU.shape[1]) < batch["target_lengths"][:, None]
            valid_BU = valid_BU.to(self.device)
            correct_BU = logits_BUV.argmax(dim=-1) == target_BU[:, 1:]
            loss += float(F.cross_entropy(logits_BUV[valid_BU], target_BU[:, 1:][valid_BU], reduction="sum"))
            correct += int((correct_BU & valid_BU).sum())
            tokens += int(valid_BU.sum())
            correct_rows += int((correct_BU | ~valid_BU).all(dim=1).sum())
        return TeacherForced(loss, correct, tokens, correct_rows, len(rows))

    def generate(self, rows: TokenRows, batch_size: int = 64) -> list[str]:
        """Return the output for each row of tokens, in batches by length that do not change the outputs."""
        outputs: list[list[int]] = [[] for _ in range(len(rows))]
        for batch in scoring_batches(rows.lengths, batch_size):
            for row, output in zip(batch.tolist(), self.output_ids(rows, batch), strict=True):
                outputs[row] = output
        return decode(self.target_tokenizer, outputs)

    def output_ids(self, rows: TokenRows, batch: Ints) -> list[list[int]]:
        """Return the token ids of the outputs for the rows with these numbers, computed as one batch."""
        settings, ends = self.settings, target_ends(self.target_tokenizer)
        max_length = min(settings.max_length or self.metadata.max_length, self.metadata.max_length)
        ids, mask, *_ = rows.pad(batch)
        mask = None if mask is None else mask.to(self.device)
        try:
            return generate(
                self.model,
                ids.to(self.device),
                mask,
                ends,
                num_beams=settings.num_beams,
                max_length=max_length,
                length_penalty=settings.length_penalty,
            )
        except FloatingPointError:
            raise soundness.not_finite(self.folder) from None
