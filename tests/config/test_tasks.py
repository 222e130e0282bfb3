"""The facts about each task fit the run file and each other."""

from __future__ import annotations

from typing import get_args

import pytest

from txclf.config import run_config
from txclf.config.base import Monitor
from txclf.config.run_config import RunConfig
from txclf.config.tasks import TASKS, Task, TaskSpec
from txclf.core.errors import ConfigError

SPECS = pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS.keys())


def test_tasks_are_those_of_the_run_file() -> None:
    assert tuple(TASKS) == get_args(Task)
    assert all(name == spec.name for name, spec in TASKS.items())


@SPECS
def test_task_spec_monitors_are_known_and_start_with_the_loss(spec: TaskSpec) -> None:
    assert spec.monitors[0] == "valid_loss"
    assert set(spec.monitors) <= set(get_args(Monitor))


@SPECS
def test_task_spec_defaults_satisfy_its_restrictions(spec: TaskSpec) -> None:
    run = run_config.parse({"task": spec.name})
    assert run.task_spec is spec
    assert hasattr(run.data, spec.answer_key)
    for restriction in spec.restrictions:
        section, key = restriction.key.split(".")
        assert key in type(getattr(RunConfig(), section)).model_fields


@SPECS
def test_task_spec_kinds_exclude_each_other(spec: TaskSpec) -> None:
    assert [spec.is_single_label, spec.is_multilabel, spec.is_seq2seq].count(True) == 1
    assert spec.has_labels is not spec.is_seq2seq
    assert spec.shard_columns == ("input_ids", spec.shard_column)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "multilabel", "train": {"sampling": "balanced"}}, "Set `train.class_weights: balanced` instead"),
        ({"task": "seq2seq", "train": {"focal_gamma": 2}}, r"`train.focal_gamma: 2.0` is not supported .* Set `0.0`"),
        ({"task": "seq2seq", "model": {"pooling": "cls"}}, "Set `mean` or `max` or `mean_max` or `attention`"),
        ({"task": "seq2seq", "model": {"word_vectors": "v.txt"}, "tokenizer": {"kind": "word"}}, "Set `null`"),
    ],
)
def test_restriction_violated_names_the_allowed_values(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config.parse(settings)
