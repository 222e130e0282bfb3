"""`txclf train --time`: the search among the kinds of models for a run file that has no search of its own.

The first trials are the candidates with their recipes: a model from scratch, and each pretrained encoder that is named.
Further trials vary their settings until the time is over. All of them answer together with the linear model on n-grams,
which takes as much weight as the validation rows give it.
"""

from __future__ import annotations

import os
from typing import Any

from txclf import pretrained
from txclf.config import run_config
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


def search(run: RunConfig, time: str, encoders: str | None = None) -> RunConfig:
    """Return the search of a run within a time, such as `10m`. `encoders` is a folder of folders of encoders.

    Raises `ConfigError` for a run that is not a classifier, has a `tune.space` of its own, or for a folder without
    encoders.
    """
    if run.task_spec.is_seq2seq:
        raise ConfigError(f"--time: not for `task: {run.task}`. Write a `tune` section and use `txclf tune`.")
    if run.tune.space:
        raise ConfigError("--time: the run file has a `tune.space` of its own. Use `txclf tune` with `tune.time`.")
    named = [*([run.model.pretrained] if run.model.pretrained else []), *_found(encoders)]
    rates: list[dict[str, Any]] = [{"train.learning_rate": 1e-3, "model.hidden_size": 128}]
    space = SCRATCH_SPACE
    if named:
        space = {"model.pretrained": {"choice": [None, *named]}, **ENCODER_SPACE}
        rates = [{"model.pretrained": None, "train.learning_rate": 1e-3}]
        rates += [{"model.pretrained": name, "train.learning_rate": 1.5e-4} for name in named]
    settings = {
        "trials": TRIALS,
        "time": time,
        "scheduler": {"kind": "asha", "grace_period": 1, "reduction_factor": 3},
        "points_to_evaluate": rates,
        "space": space,
    }
    as_set = run.model_dump(exclude_unset=True)  # so that each kind of model has its own recipe
    tune = {**as_set.get("tune", {}), **settings}
    return run_config.parse(set_dotted({"tune": tune, "model.ngrams": True}, as_set), run.name)


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
