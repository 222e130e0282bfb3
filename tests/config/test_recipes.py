"""Defaults that follow from the number of training rows, and keys that go with a pretrained model."""

from __future__ import annotations

from typing import Any

import pytest

from txclf.config import recipes, run_config, yaml_text
from txclf.core.errors import ConfigError


def parse(**sections: Any) -> run_config.RunConfig:
    """Parse a pretrained run; sections are merged with the model."""
    return run_config.parse({**sections, "model": {"pretrained": "org/name", **sections.get("model", {})}})


def test_recipe_fills_the_keys_that_are_not_set() -> None:
    run = recipes.with_recipe(parse(train={"epochs": 7}), 5000, 6)
    expected = recipes.pretrained(5000)["train"] | {"epochs": 7}
    assert {key: getattr(run.train, key) for key in expected} == expected
    assert recipes.with_recipe(run, 10, 2) == run


@pytest.mark.parametrize(("rows", "epochs", "eval_every"), [(8, 100, 5), (48, 67, 3.35), (384, 20, 1), (5000, 4, 1)])
def test_few_rows_take_more_epochs_and_not_more_validations(rows: int, epochs: int, eval_every: float) -> None:
    run = recipes.with_recipe(parse(), rows, 6)
    assert run.train.epochs == epochs
    assert run.train.eval_every == pytest.approx(eval_every)


@pytest.mark.parametrize(
    ("rows", "labels", "sections", "steps"),
    [
        (64, 2, {}, 120),
        (65, 2, {}, 0),
        (480, 77, {}, 120),
        (481, 77, {}, 0),
        (64, 2, {"model": {"pooling": "cls"}}, 0),
        (64, 2, {"model": {"reinitialize_layers": 1}}, 0),
        (64, 2, {"data": {"truncation": "windows"}}, 0),
        (64, 2, {"compute": {"strategy": "fsdp"}}, 0),
        (64, 2, {"distill": {"teacher": "runs/teacher/model"}}, 0),
        (64, 2, {"task": "multilabel"}, 0),
    ],
)
def test_few_rows_of_a_sentence_encoder_make_pairs(
    rows: int, labels: int, sections: dict[str, Any], steps: int
) -> None:
    run = parse(**{**sections, "model": {"pooling": "mean", **sections.get("model", {})}})
    settled = recipes.with_recipe(recipes.with_pairs(run, rows, labels), rows, labels)
    assert settled.train.contrastive_steps == steps
    assert settled.model.freeze == ("encoder" if steps else "none")
    shown = recipes.described(run, settled, rows)
    assert shown
    assert ("train.contrastive_steps=120" in shown) == ("model.freeze=encoder" in shown) == bool(steps)
    assert "train.start_factor=0.0" in shown
    assert recipes.as_begun(run, settled) == settled


@pytest.mark.parametrize(
    ("steps", "freeze"), [(None, "none"), (None, "encoder"), (0, None), (60, "encoder"), (120, None), (120, "none")]
)
def test_pairs_that_a_run_file_sets_are_kept_also_for_a_part_of_the_rows(steps: int | None, freeze: str | None) -> None:
    train = {} if steps is None else {"contrastive_steps": steps}
    model = {"pooling": "mean"} | ({} if freeze is None else {"freeze": freeze})
    for rows in (64, 5000):
        run = parse(train=train, model=model)
        settled = recipes.with_recipe(recipes.with_pairs(run, rows, 2), rows, 2)
        expected = (steps or 0, freeze or "none")
        assert (settled.train.contrastive_steps, settled.model.freeze) == expected
        part = run_config.parse(
            recipes.without_settled(run_config.parse(yaml_text.parse(run_config.dump(settled))), rows, 2)
        )
        part = recipes.with_recipe(recipes.with_pairs(part, 32, 2), 32, 2)
        assert (part.train.contrastive_steps, part.model.freeze) == expected


def test_a_search_leaves_pairs_to_its_trials() -> None:
    run = recipes.with_recipe(parse(model={"pooling": "mean"}), 40, 2)
    assert not {"contrastive_steps"} & run.train.model_fields_set
    assert not {"freeze"} & run.model.model_fields_set
    trial = run_config.parse(recipes.set_keys(run))
    assert recipes.with_pairs(trial, 40, 2).train.contrastive_steps == 120


@pytest.mark.parametrize(
    ("rows", "labels", "epochs", "batch_size"),
    [
        (1, 2, 30, 1),
        (300, 2, 30, 15),  # 1,080 steps would take 54 epochs of 20 steps
        (5000, 6, 16, 64),  # 1,240 steps of 64 rows
        (9000, 77, 30, 64),
        (27_000, 4, 8, 64),  # 1,160 steps are less than eight epochs
        (100_000, 2, 4, 64),  # eight epochs are more than 6,000 steps
        (10**7, 1000, 2, 64),
    ],
)
def test_a_run_from_scratch_takes_steps_for_its_rows(rows: int, labels: int, epochs: int, batch_size: int) -> None:
    run = recipes.with_recipe(run_config.parse({}), rows, labels)
    assert (run.train.epochs, run.train.batch_size) == (epochs, batch_size)
    assert run.model.pooling == recipes.scratch(rows, labels)["model"]["pooling"]
    assert recipes.with_recipe(run, 10 * rows, 2) == run  # settled once


@pytest.mark.parametrize("settings", [{"train": {"epochs": 7}}, {"model": {"dropout": 0.2}}])
def test_a_run_file_that_sets_a_key_of_the_recipe_is_taken_as_it_is(settings: dict[str, Any]) -> None:
    run = run_config.parse(settings)
    assert recipes.with_recipe(run, 5000, 6) == run
    (key,) = (f"{section}.{name}" for section, values in settings.items() for name in values)
    shown = recipes.described(run, run, 5000)
    assert shown
    assert shown.startswith(f"fixed defaults, not chosen for 5,000 training rows, because `{key}` is set: ")
    assert "train.batch_size" in shown


@pytest.mark.parametrize("task", ["multilabel", "seq2seq"])
def test_rows_of_other_tasks_settle_the_batch_alone(task: str) -> None:
    run = run_config.parse({"task": task})
    assert recipes.with_recipe(run, 5000, 6) == run
    small = recipes.with_recipe(run, 40, 6)
    assert small == run.model_copy(update={"train": small.train})
    assert small.train == run.train.model_copy(update={"batch_size": 2})
    assert recipes.described(run, small, 40) == "chosen for 40 training rows: train.batch_size=2"
    fixed = run_config.parse({"task": task, "train": {"batch_size": 8}})
    assert recipes.with_recipe(fixed, 40, 6) == fixed


def test_described_names_what_was_settled() -> None:
    before = run_config.parse({"train": {"precision": "fp32"}})
    after = recipes.with_recipe(before, 5000, 6)
    shown = recipes.described(before, after, 5000)
    assert shown
    assert shown.startswith(f"chosen for 5,000 training rows: train.epochs={after.train.epochs}, ")
    assert f"model.pooling={after.model.pooling}" in shown
    assert recipes.described(after, after, 5000) is None


def test_run_file_holds_only_what_is_set() -> None:
    run = parse(train={"epochs": 7})
    again = run_config.parse(yaml_text.parse(run_config.dump(run)))
    assert again.train.model_fields_set >= {"epochs", "precision"}
    assert not again.train.model_fields_set & {"learning_rate", "layer_decay"}
    assert again.model.model_fields_set == {"pretrained"}
    scratch = run_config.parse(yaml_text.parse(run_config.dump(run_config.parse({}))))
    assert not scratch.train.model_fields_set & recipes.scratch(10, 2)["train"].keys()


def test_a_resumed_run_keeps_what_was_settled() -> None:
    saved = recipes.with_recipe(parse(train={"learning_rate": 3e-5}), 10, 2)
    run = recipes.as_begun(parse(), saved)
    assert run.train.learning_rate == 3e-5
    assert run.train.epochs == saved.train.epochs
    assert run.model.pooling == "cls"  # as all had it when there was no other
    saved = saved.model_copy(update={"model": saved.model.model_copy(update={"pooling": "mean"})})
    assert recipes.as_begun(parse(), saved).model.pooling == "mean"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": {"pooling": "max"}},
            "`model.pooling`: expected `mean` or `cls` with `model.pretrained`, found `max`",
        ),
        ({"tokenizer": {"vocab_size": 500}}, "`tokenizer.vocab_size` follows from `model.pretrained`"),
        ({"task": "seq2seq"}, "`model.pretrained: org/name` is not supported with `task: seq2seq`"),
        (
            {"model": {"freeze": "encoder", "reinitialize_layers": 1}},
            "`model.freeze: encoder` would freeze the random weights",
        ),
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
