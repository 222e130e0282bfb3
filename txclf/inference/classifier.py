"""Trained classifier: predict labels and probabilities of texts, without Ray, Lightning or pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tokenizers import Tokenizer as FastTokenizer

from txclf.config.run_config import RunConfig
from txclf.config.sections import SpecialTokens
from txclf.core import html_table
from txclf.core.errors import BundleError, ConfigError
from txclf.core.text import listed, shown
from txclf.data.batches import TokenRows
from txclf.data.sampler import Layout, scoring_batches
from txclf.data.tokenizer import encode, parse_tokenizer, separator_id
from txclf.data.word_cache import WordCache
from txclf.inference import occlusion, prediction_sets, soundness, transformers_folder
from txclf.inference.bundle import (
    METADATA,
    TOKENIZER,
    Floats,
    build,
    metadata_from_config,
    num_segments,
    read,
    read_blend,
    tokenizer,
)
from txclf.inference.metadata import BundleMetadata
from txclf.inference.occlusion import Explanation
from txclf.metrics.thresholds import DEFAULT
from txclf.model import pooled_vectors
from txclf.model.classifier import TransformerClassifier, by_row
from txclf.model.pooled_vectors import Pooling
from txclf.model.pretrained import PretrainedClassifier
from txclf.ngrams.blend import Blend

Ints = npt.NDArray[np.int64]
Network = Callable[..., torch.Tensor]
"""Gives a tensor (sequences, width) for ids, mask and segments."""


class Prediction(NamedTuple):
    """Prediction for one text."""

    label: str
    """Most likely label."""
    probability: float
    """Probability of `label`."""
    probabilities: dict[str, float]
    """Probability of every label."""
    labels: list[str]
    """Predicted labels, the most likely first. A `multilabel` model predicts every label that reaches its threshold,
    possibly none; any other model predicts `label` alone."""


class Classifier:
    """Trained classifier that predicts labels and probabilities of texts."""

    def __init__(
        self,
        metadata: BundleMetadata,
        tokenizer: FastTokenizer,
        model: TransformerClassifier | PretrainedClassifier,
        device: torch.device | str | None = None,
    ) -> None:
        self.metadata = metadata
        self.folder = "model"
        """Folder that the model was loaded from, for messages."""
        self.tokenizer = tokenizer
        self.word_cache = WordCache(tokenizer)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)
        self._pooling: Pooling | None = None
        """Pooling of a pretrained network, once `embed` has found it."""
        self.blend: Blend | None = None
        """Linear model on n-grams that answers together with the network."""

    @classmethod
    def load(cls, folder: str, device: torch.device | str | None = None) -> Self:
        """Load a bundle from a path or URI, on a GPU if there is one and `device` does not name another device.

        Raises `BundleError` if the folder is not a bundle, is damaged, cannot answer, or holds a sequence-to-sequence
        model.
        """
        metadata, content = read(folder, seq2seq=False)
        pretrained = metadata.model.pretrained is not None
        model = build(
            lambda: _network(metadata, content),
            content,
            folder,
            layers=transformers_folder.max_layers(content) if pretrained else metadata.model.num_layers,
            folded_temperature=metadata.network_temperature if metadata.folded_temperature else 1.0,
        )
        size = model.embedding.num_embeddings
        if problem := _problem(metadata, model):
            raise BundleError(f"`{folder}`: {problem}. Copy the whole folder again.")
        classifier = cls(metadata, tokenizer(content, TOKENIZER, folder, size), model, device)
        classifier.folder = folder
        classifier.blend = read_blend(metadata, content, folder)
        soundness.require_answer(classifier._trial, folder)
        return classifier

    def _trial(self) -> Floats:
        """Return the probabilities of a trial text and of the tokens with the largest embeddings."""
        columns = self._trial_row()
        extreme = soundness.extreme_tokens(self.model.embedding.weight, self.metadata.max_length)
        ids = [self.encode([columns])[0].as_py(), extreme]
        rows = self.rows([pa.table({"input_ids": ids, "text": ["\n".join(columns), ""]})])
        probabilities = self.calibrated(self.logits(rows))
        if not self.is_multilabel and abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
            raise soundness.not_finite(self.folder)
        return probabilities

    def _trial_row(self) -> tuple[str, ...]:
        return (soundness.TRIAL_TEXT,) * len(self.metadata.text_columns)

    @classmethod
    def from_config(
        cls,
        run: RunConfig,
        weights: Mapping[str, torch.Tensor],
        labels: Sequence[str],
        tokenizer: str,
        *,
        special: SpecialTokens | None = None,
        transformers_files: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Return the classifier with the weights of a run, without a bundle and not calibrated.

        `special` and `transformers_files` are those of a pretrained model.
        """
        metadata = metadata_from_config(run, labels, [tokenizer]).model_copy(
            update={"num_segments": num_segments(weights), "special_tokens": special}
        )
        model = _network(metadata, transformers_files)
        model.load_state_dict(weights)
        return cls(metadata, parse_tokenizer(tokenizer), model)

    def ngram_contributions(self, text: str) -> dict[str, dict[str, float]]:
        """Return what each n-gram of a text adds to the log-odds of each label, the largest first; exact.

        Empty if no linear model answers together with the network.
        """
        if self.blend is None:
            return {}
        share = self.blend.share.weight / (self.blend.share.temperature * self.temperature)
        found = self.blend.model.contributions(text)
        ordered = sorted(found, key=lambda name: -float(np.abs(found[name]).max()))
        return {name: dict(zip(self.labels, (found[name] * share).tolist(), strict=True)) for name in ordered}

    def _repr_html_(self) -> str:
        """Return the facts about the model as a table for a notebook."""
        meta = self.metadata
        facts: list[tuple[str, object]] = [("task", meta.task), ("labels", listed(self.labels, ""))]
        facts += [("text columns", listed(meta.text_columns, "")), ("text", meta.truncation.describe(meta.max_length))]
        facts += [("pretrained", meta.model.pretrained)] if meta.model.pretrained else []
        return html_table.table(f"Classifier {self.folder}", [*facts, *meta.metrics.items()])

    def network_only(self) -> Classifier:
        """Return the classifier without the linear model on n-grams; it shares the network."""
        network = Classifier(self.metadata.of_network(), self.tokenizer, self.model, self.device)
        network.folder = self.folder
        return network

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the columns of `probabilities`."""
        return self.metadata.labels

    @property
    def temperature(self) -> float:
        """Divisor of the logits; 1 without calibration."""
        return self.metadata.temperature

    @property
    def is_multilabel(self) -> bool:
        """True if a text may have any number of labels."""
        return self.metadata.task_spec.is_multilabel

    @property
    def thresholds(self) -> Floats:
        """Minimum probabilities (classes,) at which a multilabel model predicts each label."""
        return label_thresholds(self.metadata)

    def __call__(self, texts: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> list[Prediction]:
        """Return the predictions for texts, in their order.

        A row of several text columns is a tuple. Raises `TypeError` for a bare string and for other numbers of columns.
        """
        probabilities = self.probabilities(texts, batch_size)
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
        """Return the predicted labels of each row of probabilities (rows, classes), the most likely first."""
        if not self.is_multilabel:
            return [[self.labels[best]] for best in probabilities.argmax(axis=1)] if len(probabilities) else []
        order = np.argsort(-probabilities, axis=1, kind="stable")
        reached = probabilities >= self.thresholds
        return [
            [self.labels[i] for i in numbers if row[i]] for numbers, row in zip(order.tolist(), reached, strict=True)
        ]

    def probabilities(self, texts: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> Floats:
        """Return the calibrated class probabilities (rows, classes) of texts, or of rows of text columns.

        Raises `TypeError` for a bare string and for other numbers of columns.
        """
        return self.calibrated(self.logits(self.text_rows(self.metadata.as_rows(texts)), batch_size))

    def prediction_sets(
        self, texts: Sequence[str | tuple[str, ...]], coverage: float, batch_size: int = 64
    ) -> list[list[str]]:
        """Return for each text the labels among which the true one is with a probability of `coverage`.

        The most probable label is the first. Raises `ConfigError` if the bundle has no quantiles for `coverage`.
        """
        minimum = prediction_sets.minimum(self.metadata, coverage)
        return prediction_sets.label_sets(self.metadata, self.probabilities(texts, batch_size), minimum)

    def text_rows(self, texts: Sequence[tuple[str, ...]]) -> TokenRows:
        """Return rows of text columns as input rows of this model."""
        rows = self.rows([pa.table({"input_ids": self.encode(texts)})])
        rows.ngram_scores = self.blend.scores(["\n".join(row) for row in texts]) if self.blend else None
        return rows

    def calibrated(self, logits: Floats) -> Floats:
        """Return class probabilities (rows, classes) from logits; rows sum to 1 unless the model is multilabel.

        Raises `BundleError` if they are not finite.
        """
        with np.errstate(all="ignore"):  # what overflows is refused
            found = sigmoid(logits, self.temperature) if self.is_multilabel else softmax(logits, self.temperature)
        if not (np.isfinite(logits).all() and np.isfinite(found).all()):
            raise soundness.not_finite(self.folder)
        return found

    def encode(self, texts: Sequence[tuple[str, ...]]) -> pa.ListArray:
        """Return the token ids of rows of text columns, truncated as in training."""
        meta = self.metadata
        return encode(self.word_cache, texts, meta.max_length, meta.truncation, meta.special_tokens)[0]

    def rows(self, tables: Sequence[pa.Table]) -> TokenRows:
        """Return tables of `input_ids`, labels and, for its n-grams, `text` as input rows of this model."""
        meta = self.metadata
        separator = separator_id(self.tokenizer) if meta.num_segments else None
        rows = TokenRows(
            tables, layout=Layout.of_model(meta.max_length, meta.truncation, meta.special_tokens, separator)
        )
        if self.blend and all("text" in table.column_names for table in tables):
            texts = [text for table in tables for text in table["text"].to_pylist()]
            rows.ngram_scores = self.blend.scores(texts)
        return rows

    def logits(self, rows: TokenRows, batch_size: int = 64) -> Floats:
        """Return the logits (rows, classes) before calibration.

        Rows are batched by length, and the logits of a row do not depend on the other rows of its batch.
        """
        output = self._computed(rows, batch_size, len(self.labels), self.model)
        if self.blend is None:
            return output
        assert rows.ngram_scores is not None, "the rows have no texts"
        return self.blend.blended(output, rows.ngram_scores)

    def embed(self, texts: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> Floats:
        """Return the vector of each text that the head of the network reads, (rows, size of a vector) float32.

        A row of several text columns is a tuple. The vector of a text that is read in windows is the mean of theirs.
        The head of a pretrained model reads the vector of one token or the mean of all; if it is neither, the mean is
        returned. Raises `TypeError` for a bare string.
        """
        return self.vectors(self.rows([pa.table({"input_ids": self.encode(self.metadata.as_rows(texts))})]), batch_size)

    def vectors(self, rows: TokenRows, batch_size: int = 64) -> Floats:
        """Return the vectors of `embed` for input rows of this model."""
        model = self.model
        if isinstance(model, TransformerClassifier):
            return self._computed(rows, batch_size, model.vector_size, model.vectors)
        if self._pooling is None:
            trial = self.rows([pa.table({"input_ids": self.encode([self._trial_row()])})])
            with torch.inference_mode():
                ids, mask, segments, _ = self._padded(trial, np.arange(1))
                self._pooling = pooled_vectors.pooling_of(model, ids, mask, segments) or "mean"
        pooling = self._pooling

        def pooled(ids: torch.Tensor, mask: torch.Tensor | None, segments: torch.Tensor | None) -> torch.Tensor:
            return pooled_vectors.pooled(model, ids, mask, segments, pooling)

        return self._computed(rows, batch_size, model.network.config.hidden_size, pooled)

    def explain(self, text: str | tuple[str, ...], label: str | None = None) -> Explanation:
        """Return the weight of each word of a text for a label, by default the most probable one.

        Each word is left out in turn (`txclf.inference.occlusion`); words of a long text are left out several at a
        time. A row of several text columns is a tuple. `ngram_contributions` has the exact shares of n-grams.

        Raises `ConfigError` for an unknown label.
        """
        if label is not None and label not in self.labels:
            raise ConfigError(f"`label`: the model has no label `{shown(label)}`. Use one of {listed(self.labels)}.")
        (row,) = self.metadata.as_rows([text])
        spans = occlusion.split_row(row)
        probabilities = self.probabilities([row, *occlusion.occluded_rows(row, spans)])
        return occlusion.explanation(self.metadata, row, spans, probabilities, label)

    @torch.inference_mode()
    def _computed(self, rows: TokenRows, batch_size: int, width: int, network: Network) -> Floats:
        """Return what a network gives for rows (rows, width), each the mean over its windows."""
        output = np.empty((len(rows), width), np.float32)
        for batch in scoring_batches(rows.lengths, batch_size, rows.costs):
            ids, mask, segments, windows = self._padded(rows, batch)
            found_WD = network(ids, mask, segments=segments).float().cpu()
            output[batch] = by_row(found_WD, windows, len(batch)).numpy()
        return output

    def _padded(
        self, rows: TokenRows, batch: Ints
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return ids, mask and segments of some rows on the device of the model, and the windows."""
        ids, mask, segments, windows, _ = rows.pad(batch)
        mask, segments = (None if tensor is None else tensor.to(self.device) for tensor in (mask, segments))
        return ids.to(self.device), mask, segments, windows


def _problem(metadata: BundleMetadata, model: TransformerClassifier | PretrainedClassifier) -> str | None:
    """Return what does not fit between the metadata and the network of a bundle, or None."""
    special, size = metadata.special_tokens, model.embedding.num_embeddings
    if (special is not None) != isinstance(model, PretrainedClassifier):
        return f"`{METADATA}` has `special_tokens` of a pretrained model, or lacks them"
    if special is not None and not all(
        0 <= token < size for token in (*special.prefix, *special.separator, *special.suffix, special.pad)
    ):
        return f"`special_tokens` in `{METADATA}` are not among the {size:,} tokens of the model"
    if isinstance(model, PretrainedClassifier) and model.network.config.num_labels != len(metadata.labels):
        return f"the network has {model.network.config.num_labels} classes, but `{METADATA}` names other labels"
    return None


def label_thresholds(metadata: BundleMetadata) -> Floats:
    """Return the minimum probabilities (classes,) at which a multilabel model predicts each label."""
    thresholds = metadata.thresholds or {}
    return np.array([thresholds.get(label, DEFAULT) for label in metadata.labels], np.float32)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the softmax (rows, classes) of logits divided by a temperature."""
    logits = logits / np.float32(temperature)
    if not len(logits):
        return logits
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the sigmoid (rows, classes) of logits divided by a temperature."""
    scaled = logits / np.float32(temperature)
    exponential = np.exp(-np.abs(scaled))
    probabilities: Floats = np.where(scaled >= 0, 1, exponential) / (1 + exponential)
    return probabilities


def _network(
    metadata: BundleMetadata, transformers_files: Mapping[str, bytes] | None
) -> TransformerClassifier | PretrainedClassifier:
    """Return the network that the metadata describe, with random weights."""
    if metadata.model.pretrained is not None:
        assert transformers_files is not None
        return transformers_folder.network(transformers_files)
    return TransformerClassifier(
        metadata.model,
        metadata.vocab_size,
        len(metadata.labels),
        metadata.max_length,
        metadata.num_segments,
    )
