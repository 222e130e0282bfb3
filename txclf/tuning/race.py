"""`txclf train --time`: the search among the kinds of models for a run file that has no search of its own.

The first trials are the candidates with their recipes: a model from scratch, and each pretrained encoder that is named.
Further trials vary their settings until the time is over. All of them answer together with the linear model on n-grams,
which takes as much weight as the validation rows give it. Keys that the run file sets are kept, and not searched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from txclf import pretrained
from txclf.config import recipes, run_config
from txclf.config.dotted import set_dotted
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError

TRIALS = 64
"""Trials at most; the time ends most searches before."""
SCRATCH_SPACE: dict[str, Any] = {
    "train.learning_rate": {"loguniform": [5e-4, 4e-3]},
    "model.hidden_size": {"choice": [128, 256]},
}
ENCODER_SPACE: dict[str, Any] = {"train.learning_rate": {"loguniform": [5e-5, 2e-3]}}


def search(
    run: RunConfig, time: str, encoders: str | None = None, note: Callable[[str], None] = lambda text: None
) -> RunConfig:
    """Return the search of a run within a time, such as `10m`. `encoders` is a folder of folders of encoders.

    `note` receives a sentence about each kind of model that does not fit the run file.

    Raises `ConfigError` for a run that is not a classifier, has a `tune.space` of its own, or for a folder without
    encoders.
    """
    if run.task_spec.is_seq2seq:
        raise ConfigError(f"--time: not for `task: {run.task}`. Write a `tune` section and use `txclf tune`.")
    if run.tune.space:
        raise ConfigError("--time: the run file has a `tune.space` of its own. Use `txclf tune` with `tune.time`.")
    named = [*([run.model.pretrained] if run.model.pretrained else []), *_found(encoders)]
    as_set = run.model_dump(exclude_unset=True)  # so that each kind of model has its own recipe
    kept = {f"{name}.{key}" for name in ("train", "model") for key in as_set.get(name, ())} - {"model.pretrained"}
    base = set_dotted({"model.ngrams": True} if "model.ngrams" not in kept else {}, as_set)
    points: list[dict[str, Any]] = [{"train.learning_rate": 1e-3, "model.hidden_size": 128}]
    space = SCRATCH_SPACE
    if named:
        points = [{"model.pretrained": None, "train.learning_rate": 1e-3}]
        points += [{"model.pretrained": name, "train.learning_rate": 1.5e-4} for name in named]
        points = _fitting(run_config.parse(base, run.name), points, note)
        space = {"model.pretrained": {"choice": [point["model.pretrained"] for point in points]}, **ENCODER_SPACE}
    tune = {
        "scheduler": {"kind": "asha", "grace_period": 1, "reduction_factor": 3},
        **as_set.get("tune", {}),
        "trials": TRIALS,
        "time": time,
        "points_to_evaluate": [{key: point[key] for key in point if key not in kept} for point in points],
        "space": {key: domain for key, domain in space.items() if key not in kept},
    }
    if not tune["space"]:
        raise ConfigError(f"--time: the run file sets all that is searched, {' and '.join(space)}. Remove a key.")
    return run_config.parse(set_dotted({"tune": tune}, base), run.name)


def _fitting(run: RunConfig, points: list[dict[str, Any]], note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the kinds of models that the other keys of a run fit, such as `model.revision` one from the hub alone.

    Raises `ConfigError` if no encoder is left.
    """
    found, sizes = [], run.model.model_fields_set & set(recipes.SIZES)
    for point in points:
        name = point["model.pretrained"]
        try:
            run_config.with_overrides(run, point)
            if name and sizes:
                raise ConfigError(f"`model.{min(sizes)}` follows from `model.pretrained`. Remove the key.")
        except ConfigError as error:
            reason = error
            note(f"not tried: {f'`{name}`' if name else 'a model from scratch'}: {error}")
        else:
            found.append(point)
    if not any(point["model.pretrained"] for point in found):
        raise reason
    return found


def _found(folder: str | None) -> list[str]:
    """Return the folders of encoders in a folder."""
    if folder is None:
        return []
    if not os.path.isdir(folder):
        raise ConfigError(f"--encoders: `{folder}` is no folder. Set the folder that holds the folders of encoders.")
    paths = [os.path.join(os.path.abspath(folder), name) for name in sorted(os.listdir(folder))]
    found = [path for path in paths if os.path.isfile(os.path.join(path, pretrained.CONFIG))]
    if not found:
        raise ConfigError(f"--encoders: `{folder}` holds no folder with a `{pretrained.CONFIG}`. Put an encoder there.")
    return found
