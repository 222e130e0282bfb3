"""Metadata of a bundle: the content of `model.json`, and its summary for the model card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from txclf.config.sections import Generate, Model, SpecialTokens, Truncation
from txclf.config.tasks import TASKS, Task, TaskSpec
from txclf.core.text import shown
from txclf.inference.model_card import code
from txclf.metrics.conformal import MAX_QUANTILES
from txclf.ngrams.blend import NgramShare

FORMAT = 2
"""Format of `model.json` that this version writes."""
MAX_CARD_LABELS = 200
"""Labels that a model card names; `model.json` has all of them."""

_RENAMED = {
    "layers": "num_layers",
    "width": "hidden_size",
    "heads": "num_heads",
    "feedforward": "intermediate_size",
    "decoder_layers": "num_decoder_layers",
    "head_width": "classifier_hidden_size",
    "segments": "segment_embeddings",
    "positions": "position_encoding",
    "vectors": "word_vectors",
    "freeze_vectors": "freeze_word_vectors",
}
"""Keys of `model` in format 1 and their names in format 2."""


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Convert a `model.json` of format 1 to format 2; return other content unchanged."""
    if content.get("format") != 1:
        return content
    content = {**content, "format": FORMAT}
    content["model"] = {_RENAMED.get(key, key): value for key, value in content.get("model", {}).items()}
    truncation = content.pop("cut", {"columns": "end"})
    content["truncation"] = {("mode" if key == "long" else key): value for key, value in truncation.items()}
    if content.get("generate"):
        content["generate"] = {
            ("num_beams" if key == "beams" else key): value for key, value in content["generate"].items()
        }
    return content


class Calibration(BaseModel):
    """Temperature scaling of a bundle, fitted on the validation split."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: Annotated[float, Field(ge=1e-3, le=1e3)]
    """Divisor of the logits (Guo et al., arXiv:1706.04599)."""
    error_before: float
    """Expected calibration error with a temperature of 1."""
    error_after: float
    """Expected calibration error with `temperature`."""
    rows: int
    """Validation rows that the temperature was fitted on: all of them, or a sample of 50,000."""


class Conformal(BaseModel):
    """Quantiles for the prediction sets of a bundle, of validation rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rows: Annotated[int, Field(ge=1, le=2**53)]
    """Validation rows that the quantiles are of: all of them, or a sample of 50,000."""
    quantiles: list[Annotated[float, Field(ge=0.0, le=1.0)]]
    """Probabilities of the true labels, in descending order (`txclf.metrics.conformal`)."""

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if len(self.quantiles) != min(self.rows, MAX_QUANTILES):
            raise ValueError(f"{len(self.quantiles):,} `quantiles` of {self.rows:,} rows")
        if self.quantiles != sorted(self.quantiles, reverse=True):
            raise ValueError("`quantiles` are not in descending order")
        return self


def _distinct(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"`{shown(double)}` is given twice")
    return names


def _file_name(name: str) -> str:
    if "/" in name or "\\" in name or name.startswith(".") or not name:
        raise ValueError("expected names of files in the folder of the bundle")
    return name


class BundleMetadata(BaseModel):
    """Content of `model.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: int
    version: str
    """Version of txclf that saved the bundle."""
    task: Task
    labels: Annotated[list[str], AfterValidator(_distinct)]
    """Labels in the order of the outputs of the network; empty for a `seq2seq` model."""
    text_columns: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
    """Columns of the training data that the model reads, in order."""
    max_length: Annotated[int, Field(ge=1, le=65_536)]
    """Maximum number of tokens per row."""
    truncation: Truncation
    """Truncation of longer rows."""
    num_segments: NonNegativeInt = 0
    """Number of text columns that segment embeddings distinguish; 0 without them, and for a pretrained model."""
    special_tokens: SpecialTokens | None = None
    """Tokens around each text that a pretrained model expects; None for a model from scratch."""
    vocab_size: PositiveInt
    """Tokens of the tokenizer."""
    target_vocab_size: NonNegativeInt = 0
    """Tokens of the target tokenizer of a `seq2seq` model; 0 for other models."""
    generate: Generate | None = None
    """Default beam search of a `seq2seq` model."""
    model: Model
    """Architecture of the network."""
    metrics: dict[str, float]
    """Metrics on the validation split."""
    rows: dict[str, int]
    """Number of rows of each split."""
    sha256: dict[Annotated[str, AfterValidator(_file_name)], str]
    """SHA-256 checksums of the weights and tokenizers, by file name."""
    calibration: Calibration | None = None
    """Temperature scaling; None for uncalibrated probabilities."""
    ngrams: NgramShare | None = None
    """Share of a linear model on n-grams in the answers; None for the network alone."""
    folded_temperature: bool = False
    """True if the stored weights of the last layer contain the temperature, for Transformers."""
    label_delimiter: str = ","
    """Separator of the labels of a `multilabel` model in csv and tsv files."""
    thresholds: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] | None = None
    """Minimum probability of each label of a `multilabel` model, chosen on the validation split; None for 0.5."""
    conformal: Conformal | None = None
    """Quantiles for the prediction sets of a `classify` model; None if the validation rows were trained on."""

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.task_spec.has_labels != bool(self.labels):
            raise ValueError(f"a model of `task: {self.task}` has {'' if self.task_spec.has_labels else 'no '}labels")
        if unknown := sorted(self.thresholds.keys() - set(self.labels)) if self.thresholds else []:
            raise ValueError(f"`thresholds` name `{shown(unknown[0])}`, which is no label")
        if self.conformal and (self.task_spec.is_multilabel or not self.labels):
            raise ValueError(f"a model of `task: {self.task}` has no `conformal`")
        if self.num_segments not in (0, len(self.text_columns)):
            raise ValueError("`num_segments` is not the number of text columns")
        if self.task_spec.is_seq2seq != (self.generate is not None and self.target_vocab_size > 0):
            raise ValueError("`generate` and `target_vocab_size` belong to a `seq2seq` model, which needs both")
        room = self.max_length - (self.special_tokens.added if self.special_tokens else 0)
        if room < 1:
            raise ValueError("`special_tokens` leave no room for a text")
        if not 0 <= self.truncation.window_overlap < room or not 1 <= self.truncation.max_windows <= 1024:
            raise ValueError("`truncation` has windows that do not fit `max_length`")
        return self

    @property
    def task_spec(self) -> TaskSpec:
        """Facts about `task`."""
        return TASKS[self.task]

    @property
    def temperature(self) -> float:
        """Divisor of the logits; 1 without calibration."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def network_temperature(self) -> float:
        """Divisor of the logits of the network alone; 1 without calibration."""
        return self.ngrams.network_temperature if self.ngrams else self.temperature

    def as_rows(self, texts: Sequence[str | tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return texts as rows of the text columns. Raises `TypeError` for other values."""
        if isinstance(texts, str):
            raise TypeError('expected a list of texts, as in ["some text"]')
        rows: list[tuple[Any, ...]] = [
            (text,) if isinstance(text, str) or not hasattr(text, "__iter__") else tuple(text) for text in texts
        ]
        count = len(self.text_columns)
        kinds = set(map(type, chain.from_iterable(rows)))  # one pass in C, because every prediction comes through here
        if set(map(len, rows)) <= {count} and all(issubclass(kind, str) for kind in kinds):
            return rows
        wrong = next(row for row in rows if len(row) != count or not all(isinstance(text, str) for text in row))
        columns = ", ".join(self.text_columns)
        raise TypeError(f"expected {count} text(s) per row ({columns}), not {shown(repr(wrong), 200)}")

    def of_network(self) -> BundleMetadata:
        """Return the metadata of the network without the linear model on n-grams."""
        if self.ngrams is None:
            return self
        calibration = Calibration(temperature=self.network_temperature, error_before=0.0, error_after=0.0, rows=0)
        return self.model_copy(update={"ngrams": None, "calibration": calibration, "conformal": None})


def hub_metadata(name: str, metadata: BundleMetadata) -> dict[str, Any]:
    """Return the metadata that hubs read in the head of a model card, without the license."""
    spec, model = metadata.task_spec, metadata.model
    content: dict[str, Any] = {
        "library_name": "transformers" if model.pretrained else "txclf",
        "pipeline_tag": spec.pipeline_tag,
    }
    if model.pretrained and model.revision:  # only a model of the hub has a revision
        content |= {"base_model": model.pretrained, "base_model_relation": "finetune"}
    content["tags"] = ["txclf", *(["multi-label-classification"] if spec.is_multilabel else [])]
    scores = {key.removeprefix("valid_"): value for key, value in metadata.metrics.items() if "loss" not in key}
    if scores:
        metrics = [
            {"type": "f1" if key.startswith("f1") else key, "name": key, "value": value}
            for key, value in scores.items()
        ]
        dataset = {"type": name, "name": f"validation split of {name}", "split": "validation"}
        result = {"task": {"type": spec.pipeline_tag}, "dataset": dataset, "metrics": metrics}
        content["model-index"] = [{"name": name, "results": [result]}]
    return content


def summary(name: str, metadata: BundleMetadata) -> str:
    """Return the metadata of a model as Markdown, the first part of its card."""
    spec, model = metadata.task_spec, metadata.model
    kind = "sequence-to-sequence transformer" if spec.is_seq2seq else "transformer text classifier"
    if spec.is_multilabel:
        kind += " with any number of labels per text"
    metrics = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in metadata.metrics.items())
    rows = ", ".join(f"{split} {count:,}" for split, count in metadata.rows.items())
    return f"""# {name}

A {kind} ({model.num_layers} layer{"s" * (model.num_layers > 1)} of size {model.hidden_size}, {model.num_heads} heads),
{_origin(model)} with txclf {metadata.version}.

{_answers(metadata)}
- **Rows**: {rows}
- **Input**: {metadata.truncation.describe(metadata.max_length)} of a text, a vocabulary of \
{metadata.vocab_size:,} tokens
- **Probabilities**: {_calibration(metadata.calibration)}{_ngrams(metadata.ngrams)}

| on the validation split | |
| --- | --- |
{metrics}

{_usage(metadata)}
"""


def _ngrams(share: NgramShare | None) -> str:
    """Return the line about the linear model on n-grams, if it has a share."""
    return (
        ""
        if share is None
        else f"\n- **N-grams**: a linear model on n-grams answers with a weight of {share.weight:.2f}"
    )


def _origin(model: Model) -> str:
    """Return how the weights came about."""
    if model.pretrained is None:
        return "trained"
    if model.revision is None:
        return f"fine-tuned from {code(os.path.basename(model.pretrained.rstrip('/')))}"
    return f"fine-tuned from {code(model.pretrained)} (revision {code(model.revision)})"


def _usage(metadata: BundleMetadata) -> str:
    """Return how to load a bundle, as Markdown."""
    count, spec = len(metadata.text_columns), metadata.task_spec
    cls = "Seq2Seq" if spec.is_seq2seq else "Classifier"
    call = 'model(["some text"])'
    if count > 1:
        row = ", ".join(f'"text {number}"' for number in range(1, count + 1))
        call = f"model.{'outputs' if spec.is_seq2seq else 'probabilities'}([({row})])"
    usage = f"""```python
from txclf import {cls}

model = {cls}.load("this/folder")
print({call})
```"""
    if metadata.model.pretrained is None or count > 2:  # Transformers takes two texts at most
        return usage
    text = '"some text"' if count == 1 else '{"text": "text 1", "text_pair": "text 2"}'
    cut = metadata.truncation.mode not in ("head", "tail")
    return f"""{usage}

Or with Transformers alone{", which reads the start of a long text only" * cut}:

```python
from transformers import pipeline

model = pipeline("text-classification", model="this/folder", top_k=None)
print(model({text}, truncation=True))
```"""


def _answers(metadata: BundleMetadata) -> str:
    """Return list items on the labels and thresholds, or on the target vocabulary."""
    if not metadata.task_spec.has_labels:
        return f"- **Target vocabulary**: {metadata.target_vocab_size:,} tokens"
    names = ", ".join(map(code, metadata.labels[:MAX_CARD_LABELS]))
    more = f", and {len(metadata.labels) - MAX_CARD_LABELS:,} more" if len(metadata.labels) > MAX_CARD_LABELS else ""
    items = f"- **Labels** ({len(metadata.labels)}): {names}{more}"
    if metadata.task_spec.is_multilabel:
        thresholds = "0.5"
        if metadata.thresholds:
            lowest, highest = min(metadata.thresholds.values()), max(metadata.thresholds.values())
            thresholds = f"chosen on the validation rows, from {lowest:.3f} to {highest:.3f}"
        items += f"\n- **Thresholds** (minimum probability of a predicted label): {thresholds}"
    return items


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return "not calibrated"
    return (
        f"calibrated on {calibration.rows:,} validation rows: temperature {calibration.temperature:.3f}, "
        f"calibration error {calibration.error_before:.4f} before, {calibration.error_after:.4f} after"
    )
