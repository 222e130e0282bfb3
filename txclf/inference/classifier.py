"""A trained classifier: texts in, labels and probabilities out, without Ray, Lightning or pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer as FastTokenizer

from txclf.config.run_config import RunConfig
from txclf.data.batches import TokenRows
from txclf.data.sampler import Layout, scoring_batches
from txclf.data.tokenizer import encode, parse_tokenizer, separator_id
from txclf.data.word_cache import WordCache
from txclf.inference.bundle import TOKENIZER, Floats, build, metadata_from_config, num_segments, read
from txclf.inference.metadata import BundleMetadata
from txclf.metrics.thresholds import DEFAULT
from txclf.model.classifier import TransformerClassifier, by_row


class Prediction(NamedTuple):
    """What the model says of one text."""

    label: str
    """The likeliest."""
    probability: float
    """Of `label`."""
    probabilities: dict[str, float]
    labels: list[str]
    """All that the text is given, the likeliest first: of a `multilabel` model those that reach their thresholds, maybe
    none; else `label` alone."""


class Classifier:
    """A trained classifier: texts in, labels and probabilities out."""

    def __init__(self, description: BundleMetadata, tokenizer: FastTokenizer, model: TransformerClassifier) -> None:
        self.description = description
        self.tokenizer = tokenizer
        self.words = WordCache(tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)

    @classmethod
    def load(cls, folder: str) -> Self:
        """Reads a bundle from a path or URI. Raises `BundleError` when it is damaged or of another format or task."""
        description, content = read(folder, "classify", "multilabel")
        model = build(lambda: _network(description), content, folder)
        return cls(description, parse_tokenizer(content[TOKENIZER].decode()), model)

    @classmethod
    def from_config(
        cls, run: RunConfig, weights: Mapping[str, torch.Tensor], labels: Sequence[str], tokenizer: str
    ) -> Self:
        """The classifier of a run's weights, without a bundle and not calibrated."""
        description = metadata_from_config(run, labels, [tokenizer]).model_copy(
            update={"num_segments": num_segments(weights)}
        )
        model = _network(description)
        model.load_state_dict(weights)
        return cls(description, parse_tokenizer(tokenizer), model)

    @property
    def labels(self) -> list[str]:
        """In the order of the columns of `probabilities`."""
        return self.description.labels

    @property
    def temperature(self) -> float:
        """What the logits are divided by before they become probabilities."""
        return self.description.calibration.temperature if self.description.calibration else 1.0

    @property
    def is_multilabel(self) -> bool:
        """Whether a text may have several labels, or none: `task: multilabel`."""
        return self.description.task == "multilabel"

    @property
    def thresholds(self) -> Floats:
        """The probability from which on each label is given (classes,), where a text may have several."""
        known = self.description.thresholds or {}
        return np.array([known.get(label, DEFAULT) for label in self.labels], np.float32)

    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> list[Prediction]:
        """Labels and probabilities of texts, in their order. Raises `TypeError` for a bare string."""
        if isinstance(texts, str):
            raise TypeError('expected a list of texts, as in classifier(["some text"])')
        probabilities = self.probabilities([(text,) for text in texts], batch_size)
        return [
            Prediction(
                self.labels[row.argmax()],
                float(row.max()),
                dict(zip(self.labels, row.tolist(), strict=True)),
                labels,
            )
            for row, labels in zip(probabilities, self.predicted_labels(probabilities), strict=True)
        ]

    def predicted_labels(self, probabilities: Floats) -> list[list[str]]:
        """The labels that each row of probabilities (rows, classes) is given, the likeliest first."""
        if not self.is_multilabel:
            return [[self.labels[winner]] for winner in probabilities.argmax(axis=1)] if len(probabilities) else []
        order = np.argsort(-probabilities, axis=1, kind="stable")
        reached = probabilities >= self.thresholds
        return [
            [self.labels[i] for i in numbers if row[i]] for numbers, row in zip(order.tolist(), reached, strict=True)
        ]

    def probabilities(self, texts: Sequence[tuple[str, ...]], batch_size: int = 64) -> Floats:
        """Calibrated class probabilities (rows, classes) of rows of text columns."""
        table = pa.table({"input_ids": self.encode(texts), "label": pa.array(np.zeros(len(texts), np.int32))})
        return self.calibrated(self.logits(self.rows([table]), batch_size))

    def calibrated(self, logits: Floats) -> Floats:
        """Class probabilities (rows, classes) of logits: they add up to 1 where a text has one label."""
        return sigmoid(logits, self.temperature) if self.is_multilabel else softmax(logits, self.temperature)

    def encode(self, texts: Sequence[tuple[str, ...]]) -> pa.ListArray:
        """Token ids of rows of text columns, cut as the training rows were."""
        return encode(self.words, texts, self.description.max_length, self.description.truncation)[0]

    def rows(self, tables: Sequence[pa.Table]) -> TokenRows:
        """Tables of `input_ids` and their labels as rows for this model."""
        truncation = self.description.truncation
        layout = Layout(
            window=self.description.max_length if truncation.mode == "windows" else None,
            overlap=truncation.window_overlap,
            separator=separator_id(self.tokenizer) if self.description.num_segments else None,
        )
        return TokenRows(tables, layout=layout)

    @torch.inference_mode()
    def logits(self, rows: TokenRows, batch_size: int = 64) -> Floats:
        """Logits (rows, classes), not calibrated, batched by length: a row's logits do not depend on its neighbours."""
        output = np.empty((len(rows), len(self.labels)), np.float32)
        for part in scoring_batches(rows.lengths, batch_size, rank=0, world_size=1, costs=rows.costs):
            ids, mask, segments, windows, _ = rows.pad(part)
            mask, segments = (None if tensor is None else tensor.to(self.device) for tensor in (mask, segments))
            logits_WC = self.model(ids.to(self.device), mask, segments=segments).cpu()
            output[part] = by_row(logits_WC, windows, len(part)).numpy()
        return output


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities (rows, classes) of logits divided by a temperature."""
    logits = logits / np.float32(temperature)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
    return raised / raised.sum(axis=1, keepdims=True) if len(logits) else logits


def sigmoid(logits: Floats, temperature: float = 1.0) -> Floats:
    """The probability of each label by itself (rows, classes) of logits divided by a temperature."""
    scaled = logits / np.float32(temperature)
    raised = np.exp(-np.abs(scaled))
    found: Floats = np.where(scaled >= 0, 1, raised) / (1 + raised)
    return found


def _network(description: BundleMetadata) -> TransformerClassifier:
    """Without its weights yet."""
    return TransformerClassifier(
        description.model,
        description.vocab_size,
        len(description.labels),
        description.max_length,
        description.num_segments,
    )
