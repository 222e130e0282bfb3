"""The recipe for pretrained models, and the keys that go with it."""

from __future__ import annotations

from typing import Any

import pytest

from txclf.config import finetuning, run_config, yaml_text
from txclf.core.errors import ConfigError


def parse(**sections: Any) -> run_config.RunConfig:
    """Parse a pretrained run; sections are merged with the model."""
    return run_config.parse({**sections, "model": {"pretrained": "org/name", **sections.get("model", {})}})


def test_recipe_fills_the_keys_that_are_not_set() -> None:
    run = finetuning.with_recipe(parse(train={"epochs": 7}), 5000)
    expected = finetuning.recipe(5000) | {"epochs": 7}
    assert {key: getattr(run.train, key) for key in expected} == expected
    assert finetuning.with_recipe(run, 10) == run


def test_a_run_from_scratch_has_no_recipe() -> None:
    run = run_config.parse({"train": {"epochs": 7}})
    assert finetuning.with_recipe(run, 5000) is run


def test_run_file_holds_only_what_is_set() -> None:
    run = parse(train={"epochs": 7})
    again = run_config.parse(yaml_text.parse(run_config.dump(run)))
    assert again.train.model_fields_set >= {"epochs", "precision"}
    assert not again.train.model_fields_set & {"learning_rate", "layer_decay"}
    assert again.model.model_fields_set == {"pretrained"}


def test_a_resumed_run_keeps_what_was_settled() -> None:
    saved = finetuning.with_recipe(parse(train={"learning_rate": 3e-5}), 10)
    run = finetuning.as_begun(parse(), saved)
    assert run.train.learning_rate == 3e-5
    assert run.train.epochs == saved.train.epochs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"pooling": "max"}}, "`model.pooling` follows from `model.pretrained`"),
        ({"tokenizer": {"vocab_size": 500}}, "`tokenizer.vocab_size` follows from `model.pretrained`"),
        ({"task": "seq2seq"}, "`model.pretrained: org/name` is not supported with `task: seq2seq`"),
    ],
)
def test_keys_that_do_not_go_with_a_pretrained_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [("freeze", "encoder"), ("revision", "main"), ("gradient_checkpointing", "true"), ("reinitialize_layers", "1")],
)
def test_keys_that_need_a_pretrained_model(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"`model.{key}` needs a pretrained model"):
        run_config.load(None, [f"model.{key}={value}"])
