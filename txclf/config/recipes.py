"""Recipes: defaults of the run file that follow from the number of training rows and labels.

A pretrained model and a model from scratch have different ones. They were chosen on the validation rows of several
datasets (docs/decisions/0034-fine-tuning-recipe.md and 0041-defaults-from-the-rows.md). What the run file sets is kept,
so a run file holds only the keys that are set until the rows are known; `run.yaml` of the run has all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from txclf.config.sections import Model, Tokenizer
from txclf.config.tasks import TASKS
from txclf.config.train import Train
from txclf.core.text import listed

if TYPE_CHECKING:
    from txclf.config.run_config import RunConfig

Recipe = dict[str, dict[str, Any]]
"""Values by section and key."""
SMALL_ROWS = 1000
"""Training rows below which a pretrained model takes more epochs and smaller batches."""
SMALL_STEPS = 200
"""Optimizer steps that a pretrained model takes on few rows, within 20 to 100 epochs."""
FEW_ROWS, MANY_ROWS = 32, 480
"""Training rows of each label, on average, and in all, up to which a sentence encoder learns from pairs of rows."""
PAIRS: Recipe = {"train": {"contrastive_steps": 120}, "model": {"freeze": "encoder"}}
"""Values with which it does: then it is frozen."""
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
    "pooling",
    *SIZES,
}
"""Keys of `model` that have a meaning with a pretrained model."""
_ONLY_PRETRAINED = ("revision", "freeze", "reinitialize_layers", "gradient_checkpointing")
FEW_KEYS = 2
"""Keys of the recipe from scratch up to which a run file that sets them may not mean to fix all the others."""
STEPS, LABELS = 1000, 25
"""A model from scratch takes at least `STEPS` optimizer steps, and as many again per `LABELS` labels …"""
MANY_STEPS, MANY_EPOCHS = 6000, 8
"""… at least `MANY_EPOCHS` epochs, unless `MANY_STEPS` steps make less …"""
MIN_EPOCHS, MAX_EPOCHS = 2, 30
"""… and in any case at least and at most these epochs."""


def pretrained(rows: int) -> Recipe:
    """Return the defaults for a pretrained model and a number of training rows."""
    is_small = rows < SMALL_ROWS
    batch_size = min(16, rows) if is_small else 32
    epochs = min(100, max(20, math.ceil(SMALL_STEPS * batch_size / rows))) if is_small else 4
    return {
        "train": {
            "epochs": epochs,
            "eval_every": max(1.0, epochs / 20),  # a checkpoint of all weights takes longer than a few steps
            "batch_size": batch_size,
            "learning_rate": 1.5e-4,
            "head_learning_rate": 1.5e-3,
            "layer_decay": 0.85,
            "schedule": "linear",
            "start_factor": 0.0,
        }
    }


def scratch(rows: int, labels: int) -> Recipe:
    """Return the defaults for a classifier from scratch and a number of training rows and labels.

    Steps matter more than epochs: few rows are passed over more often, and lose many of their tokens each time. More
    labels need more steps.
    """
    batch_size = min(64, max(1, rows // 20))
    steps_per_epoch = rows / batch_size
    epochs = max(STEPS * (1 + labels / LABELS) / steps_per_epoch, min(MANY_EPOCHS, MANY_STEPS / steps_per_epoch))
    return {
        "train": {
            "epochs": min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(epochs))),
            "batch_size": batch_size,
            "betas": (0.9, 0.98),
            "token_dropout": 0.3,
            "ema_decay": 0.99,
        },
        "model": {
            "num_layers": 1,
            "intermediate_size": 256,
            "dropout": 0.3,
            "position_encoding": "sinusoidal",
            "pooling": "mean_max",
        },
    }


def unsettled(run: RunConfig) -> dict[str, set[str]]:
    """Return the keys of each section that the rows will settle.

    For a pretrained model those are the keys of the recipe that the run file does not set. The keys of the recipe from
    scratch, for classifiers, belong together: they are settled if the run file sets none of them.
    """
    if run.model.pretrained is not None:
        keys = {"train": pretrained(SMALL_ROWS)["train"].keys() - run.train.model_fields_set}
        return (
            keys if _sets_pairs(run) else {"train": keys["train"] | PAIRS["train"].keys(), "model": set(PAIRS["model"])}
        )
    if not run.task_spec.is_single_label:  # the batch alone, which must not be larger than the data
        return {"train": {"batch_size"} - run.train.model_fields_set}
    recipe = scratch(SMALL_ROWS, 2)
    if any(values.keys() & getattr(run, section).model_fields_set for section, values in recipe.items()):
        return {}
    return {section: set(values) for section, values in recipe.items()}


def with_recipe(run: RunConfig, rows: int, labels: int) -> RunConfig:
    """Return a run whose keys are all settled by a number of training rows and labels."""
    recipe = scratch(rows, labels) if run.model.pretrained is None else pretrained(rows)
    keys = unsettled(run)
    return _updated(
        run,
        {name: {key: values[key] for key in keys.get(name, set()) & values.keys()} for name, values in recipe.items()},
    )


def with_pairs(run: RunConfig, rows: int, labels: int) -> RunConfig:
    """Return a run whose sentence encoder learns from pairs of rows if they are few. Its pooling must be known.

    What the run file sets is kept: the two keys belong together. A student learns from its teacher instead.
    """
    is_able = (
        run.task_spec.is_single_label
        and run.model.pooling == "mean"
        and not run.model.reinitialize_layers
        and run.data.truncation != "windows"
        and run.compute.strategy != "fsdp"
        and run.distill.teacher is None
    )
    is_few = rows <= min(FEW_ROWS * labels, MANY_ROWS)
    return _updated(run, PAIRS) if is_able and is_few and not _sets_pairs(run) else run


def _sets_pairs(run: RunConfig) -> bool:
    return any(values.keys() & getattr(run, section).model_fields_set for section, values in PAIRS.items())


def as_begun(run: RunConfig, saved: RunConfig) -> RunConfig:
    """Return a run with what its `saved` run file settled: keys of the recipe, sizes, and the commit of the hub.

    A run of the other recipe is returned as it is.
    """
    if (run.model.pretrained is None) != (saved.model.pretrained is None):
        return run
    keys = {section: names & getattr(saved, section).model_fields_set for section, names in unsettled(run).items()}
    if run.model.pretrained is not None:
        fixed = ({*SIZES, "pooling"} & saved.model.model_fields_set) - run.model.model_fields_set
        keys["model"] = {*keys.get("model", ()), *fixed, "revision"}
        if not {"pooling"} & (run.model.model_fields_set | saved.model.model_fields_set):  # begun by an older version
            run = _updated(run, {"model": {"pooling": "cls"}})
    return _updated(
        run, {section: {key: getattr(getattr(saved, section), key) for key in names} for section, names in keys.items()}
    )


def described(before: RunConfig, after: RunConfig, rows: int) -> str | None:
    """Return what a number of training rows settled in a run, or why they did not, in words; None if all is set."""
    chosen = [
        f"{section}.{key}={getattr(getattr(after, section), key)}"
        for section, keys in unsettled(before).items()
        for key in type(getattr(after, section)).model_fields
        if key in keys and (_sets_pairs(after) or key not in PAIRS.get(section, {}))
    ]
    if chosen:
        return f"chosen for {rows:,} training rows: {', '.join(chosen)}"
    if before.model.pretrained is not None or not before.task_spec.is_single_label:
        return None
    recipe = scratch(SMALL_ROWS, 2)
    given = [
        f"{name}.{key}" for name in recipe for key in recipe[name] if key in getattr(before, name).model_fields_set
    ]
    others = [f"{name}.{key}" for name in recipe for key in recipe[name] if f"{name}.{key}" not in given]
    if not given or len(given) > FEW_KEYS:
        return None  # nothing to say, or a run file that was thought about
    return f"fixed defaults, not chosen for {rows:,} training rows, because {listed(given)} is set: {', '.join(others)}"


def _updated(run: RunConfig, values: Recipe) -> RunConfig:
    return run.model_copy(
        update={section: getattr(run, section).model_copy(update=found) for section, found in values.items()}
    )


def problem(model: Model, tokenizer: Tokenizer, train: Train) -> str | None:
    """Return what is wrong with a run file as regards `model.pretrained`, or None."""
    if model.pretrained is None:
        if train.contrastive_steps:
            return "`train.contrastive_steps` needs a pretrained model. Set `model.pretrained`, or remove the key."
        for key in _ONLY_PRETRAINED:
            if getattr(model, key) != Model.model_fields[key].default:
                return f"`model.{key}` needs a pretrained model. Set `model.pretrained`, or remove the key."
        return None
    if "pooling" in model.model_fields_set and model.pooling not in ("mean", "cls"):
        return f"`model.pooling`: expected `mean` or `cls` with `model.pretrained`, found `{model.pooling}`."
    if train.contrastive_steps and model.reinitialize_layers:
        return "`train.contrastive_steps` and `model.reinitialize_layers` exclude each other. Remove one of them."
    if model.freeze == "encoder" and model.reinitialize_layers:
        return "`model.freeze: encoder` would freeze the random weights of `model.reinitialize_layers`. Remove one key."
    if train.pretrain_epochs:
        return "`train.pretrain_epochs` is for a model from scratch. Remove it, or remove `model.pretrained`."
    for section, values, free in (("model", model, MODEL_KEYS), ("tokenizer", tokenizer, {"max_length"})):
        for key in values.model_fields_set - free:
            if getattr(values, key) != type(values).model_fields[key].default:
                return f"`{section}.{key}` follows from `model.pretrained`. Remove the key."
    return None


def set_keys(run: RunConfig, **options: Any) -> dict[str, Any]:
    """Return the settings of a run, without those that the pretrained model or the rows determine.

    `options` are those of `model_dump`. A search that tries both kinds of models keeps what the run file sets alone.
    """
    settings, as_set = run.model_dump(**options), run.model_dump(exclude_unset=True, **options)
    if "model.pretrained" in run.tune.space:
        return settings | {section: as_set.get(section, {}) for section in ("model", "tokenizer", "train")}
    if run.model.pretrained is not None:
        settings["model"] = as_set["model"]
        settings["tokenizer"] = {"max_length": run.tokenizer.max_length}
    for section, keys in unsettled(run).items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in keys}
    return settings


def without_task_defaults(run: RunConfig) -> dict[str, Any]:
    """Return `set_keys` without the unset keys whose defaults depend on `task`, which another task replaces."""
    settings = set_keys(run)
    for key in {key for spec in TASKS.values() for key, _ in spec.defaults}:
        section, name = key.split(".")
        if name not in getattr(run, section).model_fields_set:
            settings[section].pop(name, None)
    return settings


def without_settled(run: RunConfig, rows: int, labels: int) -> dict[str, Any]:
    """Return the settings of a run without what a number of training rows settled in it, for another number.

    A run that learns from pairs of rows does so from any number.
    """
    settings = set_keys(run)
    if run.model.pretrained is not None:
        settings["train"]["contrastive_steps"] = run.train.contrastive_steps
        settings["model"] = {
            "pooling": "cls",
            **settings["model"],
            "freeze": run.model.freeze,
        }  # pooling: unless a run by this version recorded it
    recipe = scratch(rows, labels) if run.model.pretrained is None else pretrained(rows)
    kept = {
        (section, key)
        for section, values in recipe.items()
        for key, value in values.items()
        if getattr(getattr(run, section), key) != value
    }
    if run.model.pretrained is None and kept:  # the keys from scratch belong together
        return settings
    for section, values in recipe.items():
        settings[section] = {
            key: value for key, value in settings[section].items() if key not in values or (section, key) in kept
        }
    return settings
