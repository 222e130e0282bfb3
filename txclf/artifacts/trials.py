"""The trials of a search: their settings, how each went, which is best. Each trial's folder is a run folder.

    search folder/run.yaml            the resolved run file
                  trials/0003/        a run folder, with trial.json beside its files
                  trials.parquet      a row per trial, best first; trials.csv the same
                  best.yaml           a run file that does again what the winner did
                  model/              the winner's bundle
                  search.json         written last: it marks the search as finished

What is on storage is all there is to a search: one that was killed goes on from it, wherever it is copied.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel

from txclf.artifacts import checkpoints, metric_logger
from txclf.config import run_config
from txclf.config.dotted import Settings
from txclf.config.run_config import RunConfig
from txclf.config.search_space import Tune
from txclf.core import storage
from txclf.core.errors import ConfigError

FILE = "trial.json"
FOLDER = "trials"
MOST_DRAWS = 1000
"""Draws of a trial's settings after which it is given up to find some that the run file takes."""

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class Trial(BaseModel):
    """A trial as its `trial.json` has it."""

    number: int
    settings: Settings
    state: State = "waiting"
    """`finished`: trained to its end; `stopped`: by the scheduler; `failed`: `reason` says why."""
    reason: str = ""
    judged: int = 0
    """Step of the last validation that the scheduler decided on."""
    seconds: float = 0.0
    """From its start to its end, over all attempts."""
    changes: list[dict[str, Any]] = []
    """Of population-based training: what it took over, from whom and at which epoch."""


class Result(NamedTuple):
    """A trial and its best validation."""

    trial: Trial
    epochs: float
    """Trained so far."""
    best: float
    """Not a number before the first validation."""
    best_step: int
    best_epoch: float


def metric(run: RunConfig) -> str:
    """What the trials of a search are compared by."""
    return run.tune.metric or run.train.monitor


def folder(search: str, number: int) -> str:
    """The run folder of a trial."""
    return storage.join(search, FOLDER, f"{number:04d}")


def run_of(run: RunConfig, number: int, settings: Settings) -> RunConfig:
    """The run of a trial. Raises `ConfigError` for settings that do not go together."""
    place = {"storage": storage.join(run.run_folder, FOLDER), "name": f"{number:04d}"}
    return run_config.with_overrides(trial_config(run, settings), place)


def trial_config(run: RunConfig, settings: Settings) -> RunConfig:
    """A run with the settings of a trial, beside the search and called `<search>-best`."""
    rest = {"name": f"{run.name}-best", "train.monitor": metric(run), "tune": Tune().model_dump()}
    return run_config.with_overrides(run, {**settings, **rest})


def draw(run: RunConfig, number: int) -> Settings:
    """The settings of a trial: the first drawn that go together. Raises `ConfigError` when none do."""
    reason = ConfigError("")
    for attempt in range(1 if run.tune.search == "grid" else MOST_DRAWS):
        settings = run.tune.drawn(number, run.seed, attempt)
        try:
            run_of(run, number, settings)
        except ConfigError as error:
            reason = error
        else:
            return settings
    raise ConfigError(f"`tune.space`: no settings for trial {number} that go together: {reason}")


def preparation(run: RunConfig) -> str:
    """What the prepared data of a run follow from; trials in which it is the same share them."""
    return run.model_dump_json(include={"seed": True, "data": True, "tokenizer": True})


def read(search: str) -> list[Trial]:
    """The trials of a search so far, by number."""
    names = storage.list_folder(storage.join(search, FOLDER))
    paths = [storage.join(search, FOLDER, name, FILE) for name in names]
    return [Trial.model_validate(storage.read_json(path)) for path in paths if storage.exists(path)]


def read_one(search: str, number: int) -> Trial:
    """A trial by its number."""
    return Trial.model_validate(storage.read_json(storage.join(folder(search, number), FILE)))


def write(search: str, trial: Trial) -> None:
    """Writes the `trial.json` of a trial."""
    storage.write_json(storage.join(folder(search, trial.number), FILE), trial.model_dump())


def validations(search: str, number: int) -> list[dict[str, float]]:
    """The validations of a trial, in order."""
    return [
        line
        for line in metric_logger.read(storage.join(folder(search, number), "metrics.jsonl"))
        if "valid_loss" in line
    ]


def result(search: str, trial: Trial, monitor: str) -> Result:
    """A trial with its best validation, the earliest of equals."""
    history = validations(search, trial.number)
    if not history:
        return Result(trial, 0.0, math.nan, 0, 0.0)
    best = history[checkpoints.best(history, monitor)]
    return Result(trial, history[-1]["epoch"], best[monitor], int(best["step"]), best["epoch"])


def ranked(results: Sequence[Result], monitor: str) -> list[Result]:
    """Best first; of equals the one with fewer steps, then the earlier. Trials without a validation come last."""
    sign = 1.0 if monitor == "valid_loss" else -1.0
    last = math.inf
    return sorted(
        results,
        key=lambda one: (last if math.isnan(one.best) else sign * one.best, one.best_step, one.trial.number),
    )


def write_table(search: str, results: Sequence[Result], monitor: str) -> None:
    """`trials.parquet` and `trials.csv`. A key with values of several kinds is a column of JSON."""
    keys = list(dict.fromkeys(key for one in results for key in one.trial.settings))
    columns: dict[str, pa.Array] = {
        "trial": pa.array([one.trial.number for one in results]),
        "state": pa.array([one.trial.state for one in results]),
        **{key: _column([one.trial.settings.get(key) for one in results]) for key in keys},
        f"best_{monitor}": pa.array([None if math.isnan(one.best) else one.best for one in results], pa.float64()),
        "best_epoch": pa.array([one.best_epoch for one in results], pa.float64()),
        "best_step": pa.array([one.best_step for one in results]),
        "epochs": pa.array([one.epochs for one in results], pa.float64()),
        "seconds": pa.array([one.trial.seconds for one in results], pa.float64()),
        "reason": pa.array([one.trial.reason for one in results], pa.string()),
    }
    table = pa.table(columns)
    parquet, csv = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    pyarrow.csv.write_csv(table, csv)
    storage.write_bytes(storage.join(search, "trials.parquet"), parquet.getvalue())
    storage.write_bytes(storage.join(search, "trials.csv"), csv.getvalue())


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or (len(kinds) == 1 and kinds <= {str, bool}):
        return pa.array(values)
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def importance(run: RunConfig, results: Sequence[Result]) -> dict[str, float]:
    """The share that each key has in how the trials differ (fANOVA, Hutter et al., 2014); empty for too few trials.

    Trials are compared at the last epoch that all of them reached, or those stopped early would look worse than they
    are.
    """
    import optuna

    monitor, search = metric(run), run.run_folder
    histories = {one.trial.number: validations(search, one.trial.number) for one in results if one.epochs}
    settings = {one.trial.number: one.trial.settings for one in results if one.epochs and not one.trial.changes}
    keys = [key for key in run.tune.space if len({json.dumps(each[key]) for each in settings.values()}) > 1]
    if len(settings) < 4 or not keys:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    common = min(history[-1]["epoch"] for history in histories.values())
    values = {}
    for number in settings:
        history = [entry for entry in histories[number] if entry["epoch"] <= common + 1e-9] or histories[number][:1]
        values[number] = history[checkpoints.best(history, monitor)][monitor]
    if len(set(values.values())) < 2:
        return {}
    study = optuna.create_study(direction="minimize" if monitor == "valid_loss" else "maximize")
    distributions = {key: distribution(run.tune, key) for key in keys}
    for number, each in settings.items():
        params = {key: encoded(run.tune, key, each[key]) for key in keys}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=values[number]))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=run.seed % 2**32)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def distribution(tune: Tune, key: str) -> Any:
    """The values of a key as Optuna has them: those of a list by their place in it."""
    from optuna import distributions

    domain = tune.space[key]
    if domain.finite:
        return distributions.CategoricalDistribution(range(len(domain.values)))
    low, high = domain.limits
    if domain.randint:
        return distributions.IntDistribution(low, high)
    step = domain.quniform[2] if domain.quniform else None
    return distributions.FloatDistribution(low, high, log=domain.loguniform is not None, step=step)


def encoded(tune: Tune, key: str, value: Any) -> Any:
    """A value of a key as Optuna has it."""
    return tune.space[key].values.index(value) if tune.space[key].finite else value
