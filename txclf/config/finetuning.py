"""The recipe for pretrained models: the run-file keys whose defaults differ from those of a model from scratch.

The defaults were chosen on the validation rows of several datasets (docs/decisions/0034-fine-tuning-recipe.md). A key
that the run file sets is kept. So a run file holds only the keys that are set until the rows are known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txclf.config.sections import Model, Tokenizer

if TYPE_CHECKING:
    from txclf.config.run_config import RunConfig

SMALL_ROWS = 1000
"""Training rows below which the recipe takes more epochs and smaller batches."""
SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")
"""Keys of `model` that a pretrained model fixes and a run records."""
MODEL_KEYS = {
    "pretrained",
    "revision",
    "freeze",
    "reinitialize_layers",
    "gradient_checkpointing",
    "ngrams",
    "dropout",
    "attention_dropout",
    *SIZES,
}
"""Keys of `model` that have a meaning with a pretrained model."""
_ONLY_PRETRAINED = ("revision", "freeze", "reinitialize_layers", "gradient_checkpointing")


def recipe(rows: int) -> dict[str, Any]:
    """Return the defaults of `train` for a pretrained model and a number of training rows."""
    is_small = rows < SMALL_ROWS
    return {
        "epochs": 20 if is_small else 4,
        "batch_size": min(16, rows) if is_small else 32,
        "learning_rate": 1.5e-4,
        "head_learning_rate": 1.5e-3,
        "layer_decay": 0.85,
        "schedule": "linear",
        "start_factor": 0.0,
    }


def with_recipe(run: RunConfig, rows: int) -> RunConfig:
    """Return a run with values for the keys of the recipe that it does not set; a run from scratch as it is."""
    if run.model.pretrained is None:
        return run
    unset = {key: value for key, value in recipe(rows).items() if key not in run.train.model_fields_set}
    return run.model_copy(update={"train": run.train.model_copy(update=unset)})


def as_begun(run: RunConfig, saved: RunConfig) -> RunConfig:
    """Return a run with what its `saved` run file settled: unset keys of the recipe, sizes, and the commit of the hub.

    A run from scratch is returned as it is.
    """
    if run.model.pretrained is None or saved.model.pretrained is None:
        return run
    settled = recipe(SMALL_ROWS).keys() & (saved.train.model_fields_set - run.train.model_fields_set)
    sizes = (set(SIZES) & saved.model.model_fields_set) - run.model.model_fields_set
    return run.model_copy(
        update={
            "train": run.train.model_copy(update={key: getattr(saved.train, key) for key in settled}),
            "model": run.model.model_copy(update={key: getattr(saved.model, key) for key in (*sizes, "revision")}),
        }
    )


def problem(model: Model, tokenizer: Tokenizer) -> str | None:
    """Return what is wrong with a run file as regards `model.pretrained`, or None."""
    if model.pretrained is None:
        for key in _ONLY_PRETRAINED:
            if getattr(model, key) != Model.model_fields[key].default:
                return f"`model.{key}` needs a pretrained model. Set `model.pretrained`, or remove the key."
        return None
    for section, values, free in (("model", model, MODEL_KEYS), ("tokenizer", tokenizer, {"max_length"})):
        for key in values.model_fields_set - free:
            if getattr(values, key) != type(values).model_fields[key].default:
                return f"`{section}.{key}` follows from `model.pretrained`. Remove the key."
    return None


def set_keys(run: RunConfig, **options: Any) -> dict[str, Any]:
    """Return the settings of a run, without those that the pretrained model or its recipe determines.

    `options` are those of `model_dump`.
    """
    settings = run.model_dump(**options)
    if run.model.pretrained is not None:
        settings["model"] = run.model_dump(exclude_unset=True, **options)["model"]
        settings["tokenizer"] = {"max_length": run.tokenizer.max_length}
        unset = recipe(SMALL_ROWS).keys() - run.train.model_fields_set
        settings["train"] = {key: value for key, value in settings["train"].items() if key not in unset}
    return settings
