"""What a bundle says of its model: `model.json`, and the same for people, with which its card begins."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from txclf.config.sections import Generate, Model, Truncation
from txclf.config.tasks import TASKS, Task, TaskSpec

FORMAT = 2
"""Format of `model.json` that this version writes."""

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
    """Return a `model.json` of format 1 as one of format 2; any other content is returned as it is."""
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
    """How a bundle's probabilities were calibrated, on the validation split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: PositiveFloat
    """What the logits are divided by (Guo et al., arXiv:1706.04599)."""
    error_before: float
    """Expected calibration error with a temperature of 1."""
    error_after: float
    rows: int


class BundleMetadata(BaseModel):
    """`model.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    version: str
    """Of txclf, when it was saved."""
    task: Task
    labels: list[str]
    """In the order of the model's outputs."""
    text_columns: list[str]
    max_length: PositiveInt
    truncation: Truncation
    """How longer rows are treated."""
    num_segments: int = 0
    """Text columns that the model tells apart."""
    vocab_size: PositiveInt
    target_vocab_size: int = 0
    """Of `seq2seq`."""
    generate: Generate | None = None
    """Of `seq2seq`: how outputs are made, if nothing else is said."""
    model: Model
    metrics: dict[str, float]
    """On the validation split."""
    rows: dict[str, int]
    """Of each split it was made with."""
    sha256: dict[str, str]
    """Of the weights and of the tokenizer."""
    calibration: Calibration | None = None
    """None: the logits are taken as they are."""
    label_delimiter: str = ","
    """Of `multilabel`: what stands between labels in a file that cannot hold lists."""
    thresholds: dict[str, float] | None = None
    """Of `multilabel`: the probability from which on a label is given, chosen on the validation split; None: 0.5."""

    @property
    def task_spec(self) -> TaskSpec:
        """The facts about `task`."""
        return TASKS[self.task]


def summary(name: str, description: BundleMetadata) -> str:
    """What `model.json` says of a model, for people."""
    metrics = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in description.metrics.items())
    rows = ", ".join(f"{split} {count:,}" for split, count in description.rows.items())
    labels = ", ".join(f"`{label}`" for label in description.labels)
    model, found = description.model, description.calibration
    if description.task == "seq2seq":
        kind, cls = "transformer that makes texts from texts", "Seq2Seq"
        facts = f"- **Target vocabulary**: {description.target_vocab_size:,} tokens"
    else:
        kind, cls = "transformer text classifier", "Classifier"
        facts = f"- **Labels** ({len(description.labels)}): {labels}"
    calibrated = "not calibrated"
    if found:
        calibrated = (
            f"calibrated on {found.rows:,} validation rows: temperature {found.temperature:.3f}, "
            f"calibration error {found.error_before:.4f} before, {found.error_after:.4f} after"
        )
    if description.task == "multilabel":
        kind = "transformer text classifier (any number of labels per text)"
        chosen = "thresholds of 0.5"
        if description.thresholds:
            lowest, highest = min(description.thresholds.values()), max(description.thresholds.values())
            chosen = f"thresholds chosen on the validation rows, from {lowest:.3f} to {highest:.3f}"
        facts += f"\n- **Gives** a label from its threshold on: {chosen}"
    return f"""# {name}

A {kind} ({model.num_layers} layer{"s" * (model.num_layers > 1)} of size {model.hidden_size}, {model.num_heads} heads),
trained with txclf {description.version}.

{facts}
- **Rows**: {rows}
- **Reads** {description.truncation.describe(description.max_length)} of a text, a vocabulary of \
{description.vocab_size:,} tokens
- **Probabilities**: {calibrated}

| on the validation split | |
| --- | --- |
{metrics}

```python
from txclf import {cls}

model = {cls}.load("this/folder")
print(model(["some text"]))
```
"""
