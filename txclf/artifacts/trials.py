"""The trials of a search: their settings, results and ranking. Each trial's folder is a run folder.

    search folder/run.yaml            the resolved run file
                  trials/0003/        a run folder that also holds trial.json
                  trials.parquet      one row per trial, best first; trials.csv has the same rows
                  best.yaml           a run file that repeats the winner
                  model/              the winner's bundle
                  search.json         written last; marks the search as finished

The folder holds the whole state of a search, so a killed search resumes from it, even from a copy.
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
from txclf.config.base import direction
from txclf.config.dotted import Settings
from txclf.config.run_config import RunConfig
from txclf.config.search_space import Tune
from txclf.core import storage
from txclf.core.errors import ConfigError

FILE = "trial.json"
FOLDER = "trials"
MAX_DRAWS = 1000
"""Maximum number of draws to find valid settings of a trial."""

_PREPARED: dict[str, Any] = {
    "seed": True,
    "data": True,
    "tokenizer": True,
    "model": {"pretrained": True, "revision": True},
}
"""Keys of the run file that determine the prepared data, as pydantic includes them."""

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class Trial(BaseModel):
    """One trial, the contents of its `trial.json`."""

    number: int
    """Number in the search, from 0."""
    settings: Settings
    """Value of each searched key."""
    state: State = "waiting"
    """State: `finished` after the last epoch, `stopped` by the scheduler, or `failed` with a `reason`."""
    reason: str = ""
    """Reason of the end, empty if the trial finished."""
    judged: int = 0
    """Step of the last validation that the scheduler has judged."""
    seconds: float = 0.0
    """Duration in seconds, over all attempts."""
    changes: list[dict[str, Any]] = []
    """Settings that population-based training copied, with the source trial and the epoch."""


class Result(NamedTuple):
    """Trial with its best validation."""

    trial: Trial
    epochs: float
    """Epochs until the last validation."""
    best: float
    """Best value of the metric; NaN before the first validation."""
    best_step: int
    """Step of the best validation."""
    best_epoch: float
    """Epoch of the best validation."""


def metric(run: RunConfig) -> str:
    """Return the validation metric that ranks the trials of a search."""
    return run.tune.metric or run.train.monitor


def folder(search: str, number: int) -> str:
    """Return the run folder of a trial."""
    return storage.join(search, FOLDER, f"{number:04d}")


def run_of(run: RunConfig, number: int, settings: Settings) -> RunConfig:
    """Return the run of a trial. Raises `ConfigError` for settings that contradict each other."""
    location = {"storage": storage.join(run.run_folder, FOLDER), "name": f"{number:04d}"}
    return run_config.with_overrides(trial_config(run, settings), location)


def trial_config(run: RunConfig, settings: Settings) -> RunConfig:
    """Return the run with the settings of a trial, next to the search's folder and named `<search>-best`."""
    rest = {"name": f"{run.name}-best", "train.monitor": metric(run), "tune": Tune().model_dump()}
    return run_config.with_overrides(run, {**settings, **rest})


def draw(run: RunConfig, number: int) -> Settings:
    """Return the first drawn settings that form a valid run. Raises `ConfigError` if none do."""
    reason = ConfigError("")
    for attempt in range(1 if run.tune.search == "grid" else MAX_DRAWS):
        settings = run.tune.drawn(number, run.seed, attempt)
        try:
            run_of(run, number, settings)
        except ConfigError as error:
            reason = error
        else:
            return settings
    raise ConfigError(f"`tune.space`: no valid settings for trial {number}: {reason}")


def preparation(run: RunConfig) -> str:
    """Return the settings that determine the prepared data, as JSON; trials with equal ones share the data."""
    return run.model_dump_json(include=_PREPARED)


def changes_data(key: str) -> bool:
    """Return True if a dotted key is among those that determine the prepared data."""
    section, _, name = key.partition(".")
    known = _PREPARED.get(section, False)
    return known if isinstance(known, bool) else name in known


def read(search: str) -> list[Trial]:
    """Return the trials of a search, by number."""
    names = storage.list_folder(storage.join(search, FOLDER))
    paths = [storage.join(search, FOLDER, name, FILE) for name in names]
    return [storage.read_as(path, Trial) for path in paths if storage.exists(path)]


def read_one(search: str, number: int) -> Trial:
    """Return one trial."""
    return storage.read_as(storage.join(folder(search, number), FILE), Trial)


def write(search: str, trial: Trial) -> None:
    """Write the `trial.json` of a trial."""
    storage.write_json(storage.join(folder(search, trial.number), FILE), trial.model_dump())


def validations(search: str, number: int) -> list[dict[str, float]]:
    """Return the validations of a trial, in order."""
    return [
        line
        for line in metric_logger.read(storage.join(folder(search, number), "metrics.jsonl"))
        if "valid_loss" in line
    ]


def result(search: str, trial: Trial, monitor: str, history: Sequence[dict[str, float]] | None = None) -> Result:
    """Return a trial with its best validation, the earliest of equals. `history` are its validations if known."""
    history = validations(search, trial.number) if history is None else history
    if not history:
        return Result(trial, 0.0, math.nan, 0, 0.0)
    best = history[checkpoints.best(history, monitor)]
    return Result(trial, history[-1]["epoch"], best[monitor], int(best["step"]), best["epoch"])


def all_ranked(search: str, monitor: str) -> list[Result]:
    """Return the trials of a search with their best validations, in the order of `ranked`."""
    return ranked([result(search, trial, monitor) for trial in read(search)], monitor)


def ranked(results: Sequence[Result], monitor: str) -> list[Result]:
    """Return results best first; of equals the one with fewer steps, then the lower number.

    Trials without a validation come last.
    """
    sign = 1.0 if direction(monitor) == "min" else -1.0
    return sorted(
        results,
        key=lambda each: (math.inf if math.isnan(each.best) else sign * each.best, each.best_step, each.trial.number),
    )


def write_table(search: str, results: Sequence[Result], monitor: str) -> None:
    """Write `trials.parquet` and `trials.csv`. A key with values of several types becomes a column of JSON."""
    keys = list(dict.fromkeys(key for result in results for key in result.trial.settings))
    columns: dict[str, pa.Array] = {
        "trial": pa.array([result.trial.number for result in results]),
        "state": pa.array([result.trial.state for result in results]),
        **{key: _column([result.trial.settings.get(key) for result in results]) for key in keys},
        f"best_{monitor}": pa.array(
            [None if math.isnan(result.best) else result.best for result in results], pa.float64()
        ),
        "best_epoch": pa.array([result.best_epoch for result in results], pa.float64()),
        "best_step": pa.array([result.best_step for result in results]),
        "epochs": pa.array([result.epochs for result in results], pa.float64()),
        "seconds": pa.array([result.trial.seconds for result in results], pa.float64()),
        "reason": pa.array([result.trial.reason for result in results], pa.string()),
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
    """Return the share of the results' variance that each key explains (fANOVA, Hutter et al., 2014).

    Trials are compared at the last epoch that all of them reached, because trials that were stopped early would look
    too poor otherwise. Returns no keys for fewer than four trials.
    """
    import optuna

    monitor, search = metric(run), run.run_folder
    histories = {result.trial.number: validations(search, result.trial.number) for result in results if result.epochs}
    settings = {
        result.trial.number: result.trial.settings for result in results if result.epochs and not result.trial.changes
    }
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
    study = optuna.create_study(direction="minimize" if direction(monitor) == "min" else "maximize")
    distributions = {key: distribution(run.tune, key) for key in keys}
    for number, each in settings.items():
        params = {key: encoded(run.tune, key, each[key]) for key in keys}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=values[number]))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=run.seed % 2**32)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def distribution(tune: Tune, key: str) -> Any:
    """Return Optuna's distribution of a key; the values of a list are encoded by index."""
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
    """Return a value of a key as `distribution` encodes it."""
    return tune.space[key].values.index(value) if tune.space[key].finite else value
