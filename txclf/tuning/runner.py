"""The trials of a search, run by Ray Tune until they are finished or the user stops them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from ray import tune as ray_tune

from txclf import ray_cluster
from txclf.artifacts import trials
from txclf.artifacts.trials import Result, Trial
from txclf.config import recipes
from txclf.config.base import seconds_of
from txclf.config.run_config import RunConfig
from txclf.core import lease, storage
from txclf.core.errors import StorageError, TxclfError
from txclf.pretrained import Pretrained
from txclf.training.distributed import ray_trainer
from txclf.training.progress import Interrupted
from txclf.tuning import schedulers
from txclf.tuning.callbacks import ResultLog, SearchState, Stopper, Watcher
from txclf.tuning.trainable import STOP_S, Flag, Trainable
from txclf.upstream import local_ray

SCRATCH, KEPT = ".ray", "ray"
"""Folders of Ray Tune's state in the search folder: removed at the end, and kept for `tune.keep_ray_folder`."""
SAFE = ":/?&=%@+,"
"""Characters of a URI that stay as they are for Ray Tune, which reads no others than those of the standard."""
POLL_S = 0.3
"""Seconds between two looks at the state of a search."""

Show = Callable[[SearchState], bool]
"""A display of the state of a search, which returns True to stop the search."""


class Preparation(NamedTuple):
    """What trials with the same data have in common."""

    folder: str
    """Prepared folder."""
    encoder: Pretrained | None = None
    """Their pretrained model in the storage; None from scratch."""


class SearchPlan(NamedTuple):
    """The resources and data of a search, settled before its trials start."""

    at_a_time: int
    """Trials that run at once."""
    prepared: dict[str, Preparation]
    """What was prepared, by `trials.preparation`."""


@dataclass(frozen=True)
class Controls:
    """The objects by which the driver follows and stops the trials."""

    watcher: Watcher
    stopper: Stopper
    flag: Any
    """Handle of the `Flag` actor, which the trials poll."""


@dataclass
class Outcome:
    """End of Ray Tune, as its thread leaves it for the driver."""

    grid: ray_tune.ResultGrid | None = None
    error: BaseException | None = None
    is_over: bool = False
    """True if `tune.time` ended the search."""


def run_trials(
    run: RunConfig, plan: SearchPlan, results: list[Result], pending: list[Trial], show: Show
) -> ray_tune.ResultGrid | None:
    """Run the pending trials of a search, and with Optuna new ones, to their end; return Ray Tune's results.

    After `tune.time` the trials stop as they do for `show`, and the search ends with what it has.

    Raises `Interrupted` if `show` asked for a stop, or the error of Ray Tune.
    """
    state = SearchState(run, results)
    flag = ray_cluster.actor_here(Flag)
    controls = Controls(Watcher(run.run_folder, state), Stopper(), flag)
    folder = storage.join(run.run_folder, KEPT if run.tune.keep_ray_folder else SCRATCH)
    space, settings = _trial_source(run, plan, results, pending)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            ray_tune.with_parameters(Trainable, run=run, prepared=plan.prepared, flag=flag),
            _resources(run),
        ),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            scheduler=schedulers.scheduler(run, _max_epochs(run), _histories(run, results, pending)),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['trial']['number']:04d}-{trial.trial_id}",
            **settings,
        ),
        run_config=ray_tune.RunConfig(
            name=f"{run.name}-{len(storage.list_folder(folder)) + 1}",
            storage_path=quote(folder, safe=SAFE) if "://" in folder else folder,
            stop=controls.stopper,
            callbacks=[ResultLog(), controls.watcher],  # type: ignore[no-untyped-call]
            verbose=0,
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=ray_tune.FailureConfig(max_failures=run.compute.max_failures),
        ),
    )
    queue = {"TUNE_MAX_PENDING_TRIALS_PG": str(run.tune.total)} if _is_queued(run) else {}
    try:
        with ray_cluster.environment(queue), local_ray.light_trials() if local_ray.is_joined() else nullcontext():
            outcome = _fit(tuner, state, controls, show, run.tune.time)
    finally:
        with suppress(StorageError):  # unless another process has taken the search over
            lease.require(run.run_folder)
            # Tune kills the trials that it stops last before they release their workers.
            for number in state.results if run.compute.max_workers > 1 else ():
                ray_trainer.release(trials.folder(run.run_folder, number))
            storage.remove_folder(storage.join(run.run_folder, SCRATCH))
    if controls.watcher.stopping and not outcome.is_over:
        raise Interrupted
    if outcome.error is not None:
        found = (outcome.error, outcome.error.__cause__, outcome.error.__context__)  # of the watcher, wrapped by Ray
        raise next((error for error in found if isinstance(error, TxclfError)), outcome.error)
    return outcome.grid


def _fit(tuner: ray_tune.Tuner, state: SearchState, controls: Controls, show: Show, limit: str | None) -> Outcome:
    """Run Ray Tune in a thread, pass its state to `show`, and return its end."""
    outcome = Outcome()

    def fit() -> None:
        try:
            outcome.grid = tuner.fit()
        except BaseException as error:
            outcome.error = error

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    watcher, stopped_at = controls.watcher, 0.0
    while thread.is_alive():
        thread.join(timeout=POLL_S)
        began = min(state.began.values(), default=math.inf)
        asked, is_over = show(state), limit is not None and time.time() > began + seconds_of(limit)
        if asked:
            outcome.is_over = False  # also after `tune.time`: the user wants no model now
        if (asked or is_over) and not watcher.stopping:
            watcher.stopping, stopped_at = True, time.monotonic()
            controls.flag.set.remote()
            outcome.is_over = not asked
            reason = "stopping" if asked else f"`tune.time` ({limit}) is over"
            state.notes.append(f"{reason}: the trials save their checkpoints")
        if watcher.stopping and (not watcher.live or time.monotonic() - stopped_at > STOP_S):
            controls.stopper.asked = True
    show(state)
    return outcome


def _trial_source(
    run: RunConfig, plan: SearchPlan, results: list[Result], pending: list[Trial]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameter space of Ray Tune and the settings of `TuneConfig` that choose the trials."""
    settings: dict[str, Any] = {"max_concurrent_trials": plan.at_a_time}
    if _is_queued(run):
        settings = {}
    if run.tune.search == "optuna":
        settings["search_alg"] = schedulers.Optuna(run, results, pending, run.tune.total)
        settings["num_samples"] = len(pending) + run.tune.total - len(results)
        return {}, settings
    configs = [{"number": trial.number, "settings": trial.settings} for trial in pending]
    return {"trial": ray_tune.grid_search(configs)}, settings


def _is_queued(run: RunConfig) -> bool:
    """Return True if all trials are queued: a population takes turns if the cluster cannot hold all of it."""
    return run.tune.scheduler.kind == "pbt" and run.tune.max_concurrent == "auto"


def _histories(run: RunConfig, results: list[Result], pending: list[Trial]) -> schedulers.Histories:
    """Return the validations that the scheduler has judged before, by trial number."""
    histories = {
        result.trial.number: [
            entry
            for entry in trials.validations(run.run_folder, result.trial.number)
            if entry["step"] <= result.trial.judged or result.trial not in pending
        ]
        for result in results
    }
    return {number: history for number, history in histories.items() if history}


def _resources(run: RunConfig) -> ray_tune.PlacementGroupFactory:
    compute = run.compute
    if compute.max_workers > 1:
        # The trial only drives its workers. A CPU of its own would be missing for them.
        return ray_tune.PlacementGroupFactory([{"memory": 1.0}])
    return ray_tune.PlacementGroupFactory(
        [{"CPU": compute.cpus_per_worker, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}]
    )


def _max_epochs(run: RunConfig) -> int:
    """Return the epochs of the longest trial."""
    domain = run.tune.space.get("train.epochs")
    if domain:
        return int(max(domain.values))
    return recipes.MAX_EPOCHS if "epochs" in recipes.unsettled(run).get("train", ()) else run.train.epochs
