"""The tasks, one `TaskSpec` each, which holds all facts in which they differ.

A new task is an entry here, a LightningModule (`txclf.training`), an evaluator (`txclf.evaluation`) and a model class
(`txclf.inference`). All other code asks the spec and never compares task names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Task = Literal["classify", "multilabel", "seq2seq"]


class Restriction(NamedTuple):
    """Values that a run-file key may have with a task."""

    key: str
    allowed: tuple[Any, ...]
    advice: str = ""
    """Last sentence of the error. If empty, the error lists the allowed values."""


@dataclass(frozen=True)
class TaskSpec:
    """Facts about one task. Equal specs are the same object of `TASKS`."""

    name: Task
    monitors: tuple[str, ...]
    """Validation metrics that can rank checkpoints and trials, as `train.monitor` names them."""
    answer_key: Literal["label", "target"]
    """Key of `data` that names the column with the answer."""
    answer_noun: str
    """The answer of one row, in messages and tables."""
    shard_column: str
    """Column of the token shards that holds the answer: a class id, a list of class ids or target token ids."""
    pipeline_tag: str
    """Pipeline tag of the model card, as model hubs name it."""
    has_labels: bool = True
    """True if the answers come from a closed set of labels."""
    is_multilabel: bool = False
    """True if a row may have any number of labels."""
    is_seq2seq: bool = False
    """True if the answer is a generated text."""
    restrictions: tuple[Restriction, ...] = ()
    """Run-file keys that this task restricts."""
    defaults: tuple[tuple[str, Any], ...] = ()
    """Run-file keys with another default value than for the other tasks."""

    @property
    def shard_columns(self) -> tuple[str, str]:
        """Columns of the token shards that training and evaluation read."""
        return "input_ids", self.shard_column

    @property
    def is_single_label(self) -> bool:
        """True if each row has exactly one label."""
        return self.has_labels and not self.is_multilabel


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="classify",
            monitors=("valid_loss", "valid_calibrated_loss", "valid_accuracy", "valid_f1_macro"),
            answer_key="label",
            answer_noun="label",
            shard_column="label",
            pipeline_tag="text-classification",
        ),
        TaskSpec(
            name="multilabel",
            monitors=(
                *("valid_loss", "valid_calibrated_loss", "valid_map"),
                *("valid_f1_macro", "valid_f1_micro", "valid_subset_accuracy"),
            ),
            answer_key="label",
            answer_noun="set of labels",
            shard_column="labels",
            pipeline_tag="text-classification",
            is_multilabel=True,
            restrictions=(
                Restriction("train.contrastive_steps", (0,)),
                Restriction(
                    "train.sampling",
                    ("shuffle",),
                    "Set `train.class_weights: balanced` instead, because a row counts for several labels at once.",
                ),
            ),
        ),
        TaskSpec(
            name="seq2seq",
            monitors=("valid_loss", "valid_token_accuracy", "valid_exact_match"),
            answer_key="target",
            answer_noun="target",
            shard_column="target_ids",
            pipeline_tag="text2text-generation",
            has_labels=False,
            is_seq2seq=True,
            # The answers are texts with capitals; with rotary positions the decoder learns those in the source slowly.
            defaults=(
                ("tokenizer.lowercase", False),
                ("model.position_encoding", "sinusoidal"),
                ("train.monitor", "valid_loss"),
            ),
            restrictions=(
                Restriction("data.truncation", ("head", "tail", "head_tail")),
                Restriction("data.unlabelled", (None,)),
                Restriction("data.altered_copies", (0,)),
                Restriction("data.corrections", (None,), "Remove the key: only labels can be corrected."),
                Restriction("distill.teacher", (None,)),
                Restriction("model.ngrams", ("auto", False)),
                Restriction("model.pretrained", (None,)),
                Restriction("model.word_vectors", (None,)),
                Restriction("model.segment_embeddings", (None, False)),
                Restriction("model.pooling", ("mean", "max", "mean_max", "attention")),
                Restriction("train.adversarial", (0.0,)),
                Restriction("train.pretrain_epochs", (0,)),
                Restriction("train.contrastive_steps", (0,)),
                Restriction("train.head_learning_rate", (None,)),
                Restriction("train.layer_decay", (1.0,)),
                Restriction("train.class_weights", ("none",)),
                Restriction("train.focal_gamma", (0.0,)),
                Restriction("train.sampling", ("shuffle",)),
            ),
        ),
    )
}

assert tuple(TASKS) == get_args(Task)
