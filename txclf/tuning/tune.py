"""`txclf tune`: a search over settings of the run file by Ray Tune; every trial is an ordinary run.

What Ray keeps of a search is thrown away with its process: the trials' folders hold all that a resume needs (see
`trials.py`), so a search may be killed anywhere, go on with `--resume`, and be extended when it is done.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from pydantic import BaseModel, ConfigDict
from ray import tune as ray_tune

from txclf import ray_cluster
from txclf._version import __version__
from txclf.artifacts import checkpoints, trials
from txclf.artifacts.trials import Result, Trial
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.config.search_space import Tune
from txclf.core import storage
from txclf.core.errors import ClusterError, ConfigError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.training.distributed import ray_trainer
from txclf.training.progress import Interrupted
from txclf.training.train import check_fit, save_bundle
from txclf.tuning import schedulers
from txclf.tuning.callbacks import SearchState, Stopper, Watcher
from txclf.tuning.trainable import STOP_S, Flag, Trainable

SUMMARY = "search.json"
MOST_PREPARED = 100
"""Distinct preparations of the data that a search may ask for."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before it has any
    "TUNE_WARN_THRESHOLD_S": "1000",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "RAY_AIR_NEW_OUTPUT": "0",
}

Show = Callable[[SearchState], bool]
"""Takes how the search stands, says whether to stop."""


class Search(BaseModel):
    """What a finished search was; `search.json`."""

    model_config = ConfigDict(frozen=True)

    version: str
    metric: str
    trials: int
    finished: int
    stopped: int
    failed: int
    winner: int
    """Number of the best trial."""
    best: dict[str, float]
    """Metrics of its best validation."""
    settings: dict[str, Any]
    epochs: float
    """Trained, over all trials."""
    epochs_to_the_end: float
    """What all trials would have taken without early stopping."""
    importance: dict[str, float]
    seconds: float
    """Wall-clock time of this attempt."""


def check(run: RunConfig) -> None:
    """Raises `ConfigError` for a search that makes no sense, before anything starts."""
    tune, compute = run.tune, run.compute
    if not tune.space:
        raise ConfigError("`tune.space`: nothing to search: name keys and their values, as in docs/how-to/search.md")
    if compute.elastic:
        raise ConfigError("`compute.workers`: a search needs a fixed number of workers per trial")
    least = "min" if trials.metric(run) == "valid_loss" else "max"
    if tune.mode not in (None, least):
        raise ConfigError(f"`tune.mode: {tune.mode}` of `{trials.metric(run)}` looks for the worst: leave `mode` out")
    if run.train.train_on_valid or "train.train_on_valid" in tune.space:
        raise ConfigError("`train.train_on_valid`: trials are compared on rows that they must not have learned")
    touched = [key for key in tune.space if key.split(".")[0] in ("seed", "data", "tokenizer")]
    ranges = [key for key in touched if not tune.space[key].finite]
    if tune.search == "optuna" and ranges:
        raise ConfigError(f"`tune.space.{ranges[0]}`: with `search: optuna` what the data depend on needs `choice`")
    if tune.scheduler.kind == "pbt":
        if tune.max_concurrent != "auto" and tune.max_concurrent < tune.total:
            raise ConfigError("`tune.max_concurrent`: a population is trained as a whole: leave it `auto`")
        if compute.max_workers > 1:
            raise ConfigError("`tune.scheduler.kind: pbt` needs trials of one worker: set `compute.workers: 1`")
        if fixed := [key for key in tune.space if key not in PERTURBED]:
            raise ConfigError(
                f"`tune.space.{fixed[0]}`: `pbt` changes settings in the middle of a run, and this one cannot change; "
                f"take of {', '.join(PERTURBED)}"
            )


PERTURBED = (
    "train.learning_rate",
    "train.weight_decay",
    "train.label_smoothing",
    "train.max_grad_norm",
    "train.token_dropout",
    "train.adversarial",
    "model.dropout",
    "model.attention_dropout",
    "model.embedding_dropout",
)
"""What population-based training may change between two steps."""


def open_folder(run: RunConfig, resume: bool = False, extend: int = 0) -> RunConfig:
    """Makes the search folder, or finds it as it was; the run as it is to go on.

    Raises `ConfigError` for a folder that is taken, one that is not there to resume, and settings that changed.
    """
    check(run)
    folder = run.run_folder
    saved = storage.join(folder, "run.yaml")
    if not storage.exists(saved):
        if resume or extend:
            raise ConfigError(f"`{folder}`: no search to go on with: start it without --resume and --extend")
        for number in range(run.tune.total if run.tune.search != "optuna" else 0):
            trials.draw(run, number)  # all of them must be possible before any starts
        storage.write_bytes(saved, run_config.dump(run).encode())
        return run
    was = run_config.load(saved)
    if storage.exists(storage.join(folder, "prepared.json")):
        raise ConfigError(f"`{folder}` holds a run of `txclf train`: choose another `name`")
    if not (resume or extend):
        raise ConfigError(f"`{folder}` is there already: go on with --resume, or choose another `name`")
    changed = [key for key, value in _kept(was).items() if _kept(run)[key] != value]
    if changed:
        names = ", ".join(f"`{key}`" for key in changed)
        raise ConfigError(f"`{saved}` differs from what is asked in {names}: a search that goes on keeps its settings")
    count = was.tune.trials + extend
    if extend and was.tune.search == "grid":
        raise ConfigError("--extend: `search: grid` tries every combination; there are no more")
    run = run.model_copy(update={"tune": run.tune.model_copy(update={"trials": count})})
    storage.write_bytes(saved, run_config.dump(run).encode())
    return run


def _kept(run: RunConfig) -> dict[str, Any]:
    """What a search that goes on must keep."""
    sections = run.model_dump(include={"seed", "task", "data", "tokenizer", "model", "train", "tune"})
    del sections["tune"]["trials"], sections["tune"]["max_concurrent"]
    return sections


def concurrency(run: RunConfig) -> tuple[int, str]:
    """Trials at a time, and a line that says why. Ray must be connected.

    Raises `ClusterError` when not even one fits.
    """
    compute = run.compute
    workers = max(1, compute.max_workers)
    one = compute.model_copy(update={"workers": workers})
    ray_cluster.require(one)
    room = ray_cluster.room(one) // workers
    wanted = room if run.tune.max_concurrent == "auto" else min(room, run.tune.max_concurrent)
    each = f"{workers} x {compute.cpus_per_worker:g} CPUs"
    if compute.gpus_per_worker:
        each += f" and {workers} x {compute.gpus_per_worker:g} GPUs"
    return wanted, f"{wanted} trials at a time: each takes {each}, and the cluster has room for {room}"


def prepare_all(run: RunConfig, note: Callable[[str], None]) -> dict[str, str]:
    """The prepared folder of every distinct preparation that a trial may ask for. Made one after the other."""
    tune = run.tune
    if tune.search == "optuna":
        grid = {key: domain for key, domain in tune.space.items() if key.split(".")[0] in ("seed", "data", "tokenizer")}
        data = Tune(search="grid", space=grid)
        each = [trials.trial_config(run, data.drawn(number, 0)) for number in range(data.total)]
    else:
        known = {trial.number: trial.settings for trial in trials.read(run.run_folder)}
        each = [trials.trial_config(run, known.get(n) or trials.draw(run, n)) for n in range(tune.total)]
    wanted = {trials.preparation(one): one for one in each}
    if len(wanted) > MOST_PREPARED:
        raise ConfigError(f"`tune.space` asks for {len(wanted)} preparations of the data; the most are {MOST_PREPARED}")
    folders = {}
    for number, (key, one) in enumerate(wanted.items(), 1):
        folders[key] = prepare(one)
        check_fit(one, shards.load_manifest(folders[key]))
        if len(wanted) > 1:
            note(f"prepared data {number} of {len(wanted)}: {folders[key]}")
    return folders


class SearchPlan(NamedTuple):
    """What is settled before the trials start."""

    at_a_time: int
    """Trials that run at once."""
    prepared: dict[str, str]
    """The prepared folder of each `trials.preparation`."""


def plan(run: RunConfig, note: Callable[[str], None] = lambda text: None) -> SearchPlan:
    """Finds out how many trials fit, and prepares their data. Ray must be connected.

    Raises `ClusterError` when not even one trial fits.
    """
    at_a_time, reason = concurrency(run)
    note(reason)
    return SearchPlan(at_a_time, prepare_all(run, note))


def tune(run: RunConfig, plan: SearchPlan, show: Show = lambda standing: False) -> Search:
    """Runs a search to its end, in a folder of `open_folder`. Ray must be connected.

    Raises `Interrupted` when `show` asked for a stop.
    """
    started = time.time()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told as the trial's reason
    search, metric = run.run_folder, trials.metric(run)
    if run.tune.search != "optuna":
        there = {trial.number for trial in trials.read(search)}
        for number in range(run.tune.total):
            if number not in there:
                trials.write(search, Trial(number=number, settings=trials.draw(run, number)))
    results = [trials.result(search, trial, metric) for trial in trials.read(search)]
    # Those that were running go on first.
    left = [one.trial for one in results if one.trial.state in ("running", "waiting")]
    left.sort(key=lambda trial: (trial.state != "running", trial.number))
    new = run.tune.total - len(results) if run.tune.search == "optuna" else 0
    if left or new > 0:
        for trial in left:
            ray_trainer.release(trials.folder(search, trial.number))
        _run_tuner(run, plan, results, left, show)
    return _finish(run, plan.prepared, started)


def refit_run(run: RunConfig, search: Search, workers: int | None) -> RunConfig:
    """A run that trains the winner's settings on the training and validation rows, as long as the winner was at its
    best."""
    best_epoch = trials.result(run.run_folder, trials.read_one(run.run_folder, search.winner), search.metric).best_epoch
    place: dict[str, Any] = {"name": f"{run.name}-refit-{search.winner:04d}", "train.train_on_valid": True}
    if workers is not None:
        place["compute.workers"] = workers
    return run_config.with_overrides(
        trials.trial_config(run, search.settings), {**place, "train.epochs": max(1, round(best_epoch))}
    )


def _run_tuner(
    run: RunConfig,
    plan: SearchPlan,
    results: list[Result],
    left: list[Trial],
    show: Show,
) -> None:
    search, standing = run.run_folder, SearchState(run, results)
    scratch = storage.join(search, ".ray")
    histories = {
        one.trial.number: [
            entry
            for entry in trials.validations(search, one.trial.number)
            if entry["step"] <= one.trial.judged or one.trial not in left
        ]
        for one in results
        if one.epochs
    }
    flag: Any = ray.remote(Flag).options(num_cpus=0).remote()
    watcher, stopper = Watcher(search, standing), Stopper()
    drawn: dict[str, Any] = {}
    settings: dict[str, Any] = {"max_concurrent_trials": plan.at_a_time}
    if run.tune.scheduler.kind == "pbt" and run.tune.max_concurrent == "auto":
        # The whole population waits in line, so that its members take turns where there is no room for all.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(run.tune.total)
        settings = {}
    if run.tune.search == "optuna":
        settings |= {"search_alg": schedulers.Optuna(run, results, left, run.tune.total)}
        settings |= {"num_samples": len(left) + run.tune.total - len(results)}
    else:
        drawn = {"trial": ray_tune.grid_search([{"number": one.number, "settings": one.settings} for one in left])}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            ray_tune.with_parameters(Trainable, run=run, prepared=plan.prepared, flag=flag, at_a_time=plan.at_a_time),
            _resources(run),
        ),
        param_space=drawn,
        tune_config=ray_tune.TuneConfig(
            scheduler=schedulers.scheduler(run, _longest(run), histories),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['trial']['number']:04d}-{trial.trial_id}",
            **settings,
        ),
        run_config=ray_tune.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=scratch,
            stop=stopper,
            callbacks=[watcher],
            verbose=0,
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=ray_tune.FailureConfig(max_failures=run.compute.max_failures),
        ),
    )
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    asked = 0.0
    try:
        while thread.is_alive():
            thread.join(timeout=0.3)
            if show(standing) and not watcher.stopping:
                watcher.stopping, asked = True, time.monotonic()
                flag.put_up.remote()
                standing.notes.append("stopping: the trials save their checkpoints")
            if watcher.stopping and (not watcher.live or time.monotonic() - asked > STOP_S):
                stopper.asked = True
        show(standing)
    finally:
        if run.compute.max_workers > 1:  # Tune kills a trial that it stops last before that gives its workers back
            for number in standing.results:
                ray_trainer.release(trials.folder(search, number))
        storage.remove_folder(scratch)
    if watcher.stopping:
        raise Interrupted
    if outcome:
        raise outcome[0]


def _resources(run: RunConfig) -> ray_tune.PlacementGroupFactory:
    compute = run.compute
    if compute.max_workers > 1:
        # Only drives workers: a CPU of its own would be one that they lack.
        return ray_tune.PlacementGroupFactory([{"memory": 1.0}])
    return ray_tune.PlacementGroupFactory(
        [{"CPU": compute.cpus_per_worker, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}]
    )


def _longest(run: RunConfig) -> int:
    """Epochs of the longest trial."""
    domain = run.tune.space.get("train.epochs")
    return int(max(domain.values)) if domain else run.train.epochs


def _finish(run: RunConfig, prepared: dict[str, str], started: float) -> Search:
    """Tables, the winner's run file and bundle, then the summary, which marks the search as finished."""
    search, metric = run.run_folder, trials.metric(run)
    everything = [trials.result(search, trial, metric) for trial in trials.read(search)]
    results = trials.ranked(everything, metric)
    trials.write_table(search, results, metric)
    winner = results[0]
    best = trials.trial_config(run, winner.trial.settings)
    source = trials.run_of(run, winner.trial.number, winner.trial.settings)
    saved = checkpoints.committed(storage.join(source.run_folder, "checkpoints"))
    if math.isnan(winner.best) or not checkpoints.ranked(saved, metric):
        raise ClusterError(f"no trial came to a validation; the first failed because: {winner.trial.reason}")
    storage.write_bytes(storage.join(search, "best.yaml"), run_config.dump(best).encode())
    chosen = save_bundle(storage.join(search, "model"), best, prepared[trials.preparation(source)], saved)
    states = [one.trial.state for one in results]
    summary = Search(
        version=__version__,
        metric=metric,
        trials=len(results),
        finished=states.count("finished"),
        stopped=states.count("stopped"),
        failed=states.count("failed"),
        winner=winner.trial.number,
        best=chosen.metrics,
        settings=winner.trial.settings,
        epochs=sum(one.epochs for one in results),
        epochs_to_the_end=sum(trials.run_of(run, one.trial.number, one.trial.settings).train.epochs for one in results),
        importance=trials.importance(run, results),
        seconds=time.time() - started,
    )
    storage.write_json(storage.join(search, SUMMARY), summary.model_dump())
    return summary
