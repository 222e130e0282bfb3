"""A trained `seq2seq` model: texts in, texts out, without Ray, Lightning or pickle.

from txclf import Seq2Seq
Seq2Seq.load("runs/multi30k/model")(["A man is sleeping."])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import pyarrow as pa
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch.nn import functional as F

from txclf.config.run_config import RunConfig
from txclf.config.sections import Generate
from txclf.data.batches import PairRows, TokenRows
from txclf.data.sampler import Ints, scoring_batches
from txclf.data.tokenizer import decode, encode, parse_tokenizer, target_ends
from txclf.data.word_cache import WordCache
from txclf.inference import bundle
from txclf.inference.metadata import BundleMetadata
from txclf.model.beam_search import generate
from txclf.model.seq2seq import Seq2SeqTransformer


class Seq2Seq:
    """Makes a text from each text, by beam search."""

    def __init__(
        self, description: BundleMetadata, tokenizers: Sequence[FastTokenizer], model: Seq2SeqTransformer
    ) -> None:
        assert description.generate is not None
        self.description = description
        self.settings: Generate = description.generate
        """How outputs are made; another may be set."""
        self.tokenizer, self.target_tokenizer = tokenizers[0], tokenizers[-1]
        self.words = WordCache(self.tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)

    @classmethod
    def load(cls, folder: str) -> Self:
        """Reads a bundle from a path or URI. Raises `BundleError` when it is damaged or of another format or task."""
        description, content = bundle.read(folder, "seq2seq")
        shared = bundle.TARGET_TOKENIZER not in content
        sizes = description.vocab_size, description.target_vocab_size, description.max_length
        model = bundle.build(lambda: Seq2SeqTransformer(description.model, *sizes, shared), content, folder)
        names = [bundle.TOKENIZER] if shared else [bundle.TOKENIZER, bundle.TARGET_TOKENIZER]
        return cls(description, [parse_tokenizer(content[name].decode()) for name in names], model)

    @classmethod
    def from_config(cls, run: RunConfig, weights: Mapping[str, torch.Tensor], tokenizers: Sequence[str]) -> Self:
        """The model of a run's weights, without a bundle."""
        description = bundle.metadata_from_config(run, (), tokenizers)
        sizes = description.vocab_size, description.target_vocab_size, description.max_length
        model = Seq2SeqTransformer(description.model, *sizes, len(tokenizers) == 1)
        model.load_state_dict(weights)
        return cls(description, [parse_tokenizer(text) for text in tokenizers], model)

    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> list[str]:
        """The output for each text, in their order. Raises `TypeError` for a bare string."""
        if isinstance(texts, str):
            raise TypeError('expected a list of texts, as in model(["some text"])')
        return self.outputs([(text,) for text in texts], batch_size)

    def outputs(self, texts: Sequence[tuple[str, ...]], batch_size: int = 64) -> list[str]:
        """The output for each row of text columns."""
        return self.generate(self.rows([pa.table({"input_ids": self.encode(texts)})]), batch_size)

    def encode(self, texts: Sequence[tuple[str, ...]]) -> pa.ListArray:
        """Token ids of rows of text columns, cut as the training rows were."""
        return encode(self.words, texts, self.description.max_length, self.description.truncation)[0]

    def rows(self, tables: Sequence[pa.Table]) -> TokenRows:
        """Tables of `input_ids` as rows for this model."""
        return TokenRows(tables)

    @torch.inference_mode()
    def teacher_forced(self, rows: PairRows, batch_size: int = 64) -> dict[str, float]:
        """Loss, perplexity and accuracy of target tokens, each predicted from the true ones before it; and the share of
        rows whose tokens are all right."""
        loss, right, tokens, rows_right = 0.0, 0, 0, 0
        for part in scoring_batches(rows.lengths, batch_size, rank=0, world_size=1):
            batch = rows.batch(part)
            mask = None if batch["mask"] is None else batch["mask"].to(self.device)
            target_BU = batch["target_ids"].to(self.device)
            logits_BUV = self.model(batch["input_ids"].to(self.device), mask, target_BU[:, :-1])
            inside_BU = torch.arange(1, target_BU.shape[1]) < batch["target_lengths"][:, None]
            inside_BU = inside_BU.to(self.device)
            right_BU = logits_BUV.argmax(dim=-1) == target_BU[:, 1:]
            loss += float(F.cross_entropy(logits_BUV[inside_BU], target_BU[:, 1:][inside_BU], reduction="sum"))
            right += int((right_BU & inside_BU).sum())
            tokens += int(inside_BU.sum())
            rows_right += int((right_BU | ~inside_BU).all(dim=1).sum())
        return {
            "loss": loss / tokens,
            "perplexity": math.exp(min(loss / tokens, 700.0)),
            "token_accuracy": right / tokens,
            "teacher_forced_match": rows_right / len(rows),
        }

    def generate(self, rows: TokenRows, batch_size: int = 64) -> list[str]:
        """The output for each row of tokens, batched by length: it does not depend on the neighbours."""
        outputs: list[list[int]] = [[] for _ in range(len(rows))]
        for part in scoring_batches(rows.lengths, batch_size, rank=0, world_size=1):
            for row, output in zip(part.tolist(), self.output_ids(rows, part), strict=True):
                outputs[row] = output
        return decode(self.target_tokenizer, outputs)

    def output_ids(self, rows: TokenRows, part: Ints) -> list[list[int]]:
        """Token ids of the outputs for some rows, as one batch."""
        settings, ends = self.settings, target_ends(self.target_tokenizer)
        longest = min(settings.max_length or self.description.max_length, self.description.max_length)
        ids, mask, *_ = rows.pad(part)
        mask = None if mask is None else mask.to(self.device)
        return generate(
            self.model, ids.to(self.device), mask, ends, settings.num_beams, longest, settings.length_penalty
        )
