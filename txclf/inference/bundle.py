"""The model bundle: all that prediction needs, loaded without Ray, Lightning or pickle.

model.safetensors    weights
tokenizer.json       of the `tokenizers` library
card.md              what the model is, for people
model.json           format, settings, labels, metrics; written last

from txclf import Classifier
Classifier.load("runs/agnews/model")(["some text"])
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from tokenizers import Tokenizer as FastTokenizer
from torch import nn

from txclf._version import __version__
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import BundleError, StorageError
from txclf.data.batches import TokenRows
from txclf.data.sampler import Layout, scoring_batches
from txclf.data.tokenizer import encode, parse_tokenizer, separator_id, vocab_size
from txclf.data.word_cache import Words
from txclf.inference import model_card
from txclf.inference.metadata import Calibration, Description, summary
from txclf.metrics.thresholds import DEFAULT
from txclf.model.classifier import TransformerClassifier, by_row

FORMAT = 1
WEIGHTS, TOKENIZER, TARGET_TOKENIZER, CARD, DESCRIPTION = (
    "model.safetensors",
    "tokenizer.json",
    "target_tokenizer.json",
    "card.md",
    "model.json",
)

Floats = npt.NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)


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


def save(
    folder: str,
    run: RunConfig,
    weights: Mapping[str, torch.Tensor],
    labels: Sequence[str],
    tokenizers: Sequence[str],
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    calibration: Calibration | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Writes a bundle; `model.json`, written last, makes it whole. A second tokenizer is that of the targets."""
    parts = {WEIGHTS: save_safetensors({name: weight.contiguous() for name, weight in weights.items()})}
    parts |= {name: text.encode() for name, text in zip((TOKENIZER, TARGET_TOKENIZER), tokenizers, strict=False)}
    description = outline(run, labels, tokenizers).model_copy(
        update={
            "metrics": dict(metrics),
            "rows": dict(rows),
            "sha256": {name: _sha256(part) for name, part in parts.items()},
            "calibration": calibration,
            "thresholds": None if thresholds is None else dict(thresholds),
            "num_segments": num_segments(weights),
        }
    )
    for name, part in parts.items():
        storage.write_bytes(storage.join(folder, name), part)
    model_card.write(storage.join(folder, CARD), run.task, summary(run.name, description))
    storage.write_json(storage.join(folder, DESCRIPTION), description.model_dump())


def outline(run: RunConfig, labels: Sequence[str], tokenizers: Sequence[str]) -> Description:
    """What follows from the run alone."""
    return Description(
        format=FORMAT,
        version=__version__,
        task=run.task,
        labels=list(labels),
        text_columns=list(run.data.text),
        max_length=run.tokenizer.max_length,
        cut=run.cut,
        vocab_size=vocab_size(parse_tokenizer(tokenizers[0])),
        target_vocab_size=vocab_size(parse_tokenizer(tokenizers[-1])) if run.task == "seq2seq" else 0,
        label_delimiter=run.data.label_delimiter,
        generate=run.generate if run.task == "seq2seq" else None,
        model=run.model,
        metrics={},
        rows={},
        sha256={},
    )


def num_segments(weights: Mapping[str, torch.Tensor]) -> int:
    """Text columns that weights tell apart."""
    return len(weights.get("segments.weight", ()))


class Classifier:
    """A trained classifier: texts in, labels and probabilities out."""

    def __init__(self, description: Description, tokenizer: FastTokenizer, model: TransformerClassifier) -> None:
        self.description = description
        self.tokenizer = tokenizer
        self.words = Words(tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)

    @classmethod
    def load(cls, folder: str) -> Self:
        """Reads a bundle from a path or URI. Raises `BundleError` when it is damaged or of another format or task."""
        description, content = read(folder, "classify", "multilabel")
        model = build(lambda: _network(description), content, folder)
        return cls(description, parse_tokenizer(content[TOKENIZER].decode()), model)

    @classmethod
    def of(cls, run: RunConfig, weights: Mapping[str, torch.Tensor], labels: Sequence[str], tokenizer: str) -> Self:
        """The classifier of a run's weights, without a bundle and not calibrated."""
        description = outline(run, labels, [tokenizer]).model_copy(update={"num_segments": num_segments(weights)})
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
    def several(self) -> bool:
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
            for row, labels in zip(probabilities, self.given(probabilities), strict=True)
        ]

    def given(self, probabilities: Floats) -> list[list[str]]:
        """The labels that each row of probabilities (rows, classes) is given, the likeliest first."""
        if not self.several:
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
        return sigmoid(logits, self.temperature) if self.several else softmax(logits, self.temperature)

    def encode(self, texts: Sequence[tuple[str, ...]]) -> pa.ListArray:
        """Token ids of rows of text columns, cut as the training rows were."""
        return encode(self.words, texts, self.description.max_length, self.description.cut)[0]

    def rows(self, tables: Sequence[pa.Table]) -> TokenRows:
        """Tables of `input_ids` and their labels as rows for this model."""
        cut = self.description.cut
        layout = Layout(
            window=self.description.max_length if cut.long == "windows" else None,
            overlap=cut.window_overlap,
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


def read(folder: str, *tasks: str) -> tuple[Description, dict[str, bytes]]:
    """A bundle's description and its files' content. Raises `BundleError` when it is damaged or of another task."""
    description = describe(folder)
    if description.task not in tasks:
        raise BundleError(f"`{folder}`: a model of `task: {description.task}`, not {' or '.join(tasks)}")
    content = {}
    for name in (WEIGHTS, TOKENIZER, TARGET_TOKENIZER):
        if name == TARGET_TOKENIZER and name not in description.sha256:
            continue
        path = storage.join(folder, name)
        if not storage.exists(path):
            raise BundleError(f"`{path}`: missing, the bundle is damaged: copy the whole folder again")
        content[name] = storage.read_bytes(path)
        if _sha256(content[name]) != description.sha256.get(name):
            raise BundleError(f"`{path}`: its content changed since it was saved: copy the whole folder again")
    return description, content


def build(make: Callable[[], Network], content: Mapping[str, bytes], folder: str) -> Network:
    """A model with the weights of a bundle. Raises `BundleError` when they do not fit."""
    try:
        model = make()
        model.load_state_dict(load_safetensors(content[WEIGHTS]))
        return model
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"`{folder}`: the weights do not fit `{DESCRIPTION}`: {error}") from None


def _network(description: Description) -> TransformerClassifier:
    """Without its weights yet."""
    return TransformerClassifier(
        description.model,
        description.vocab_size,
        len(description.labels),
        description.max_length,
        description.num_segments,
    )


def describe(folder: str) -> Description:
    path = storage.join(folder, DESCRIPTION)
    if not storage.exists(path):
        hint = storage.join(folder, "model")
        more = f": did you mean `{hint}`?" if storage.exists(storage.join(hint, DESCRIPTION)) else ""
        raise BundleError(f"`{folder}`: not a model bundle, it has no {DESCRIPTION}{more}")
    try:
        content: Any = storage.read_json(path)
    except StorageError as error:
        raise BundleError(f"{error}: copy the whole folder again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BundleError(f"`{path}`: format {found!r}, this txclf ({__version__}) reads format {FORMAT}")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"`{path}`: damaged at `{place}`: {first['msg']}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
