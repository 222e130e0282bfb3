"""The final model of a search: the winner's settings, trained on the training and validation rows."""

from __future__ import annotations

from typing import Any

from txclf.artifacts import trials
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.training.resume import is_begun_otherwise
from txclf.tuning.tune import BEST, Search


def refit_run(run: RunConfig, search: Search, workers: int | None) -> RunConfig:
    """Return the run that trains the winner's settings on the training and validation rows.

    It trains for the epochs at which the winner was best. If they or the settings have changed since an earlier refit
    of the winner, the run has another name.
    """
    best_epoch = trials.result(run.run_folder, trials.read_one(run.run_folder, search.winner), search.metric).best_epoch
    overrides: dict[str, Any] = {
        "name": f"{run.name}-refit-{search.winner:04d}",
        "train.train_on_valid": True,
        "model.ngrams": False,
    }
    if workers is not None:
        overrides["compute.workers"] = workers
    best = run_config.load(storage.join(run.run_folder, BEST))  # with all that the rows settled
    refitted = run_config.with_overrides(best, {**overrides, "train.epochs": max(1, round(best_epoch))})
    number, name = 1, refitted.name
    while is_begun_otherwise(refitted):
        number += 1
        refitted = refitted.model_copy(update={"name": f"{name}-{number}"})
    return refitted
