"""`txclf tune`: a search over settings of the run file with Ray Tune.

Every trial is an ordinary run. The state that Ray keeps of a search is deleted with its process. The trials' folders
hold all that a resume needs (see `artifacts/trials.py`), so a search can be killed at any time, resumed with `--resume`
and extended with `--extend`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.tune import ResultGrid

from txclf import ray_cluster
from txclf._version import __version__
from txclf.artifacts import checkpoints, trials
from txclf.artifacts.trials import Trial
from txclf.config import recipes, run_config
from txclf.config.base import direction
from txclf.config.dotted import Settings, changed, flatten_dotted
from txclf.config.run_config import RunConfig
from txclf.config.search_space import Tune
from txclf.config.sections import Compute
from txclf.core import html_table, lease, storage
from txclf.core.errors import ClusterError, ConfigError, TxclfError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.pretrained import Pretrained
from txclf.training import distill, row_sidecars
from txclf.training.distributed import ray_trainer
from txclf.training.job import WorkerConfig
from txclf.training.train import check_fit, has_begun, recorded_data, recorded_encoder, save_bundle
from txclf.tuning.runner import Preparation, SearchPlan, Show, run_trials

SUMMARY, BEST = "search.json", "best.yaml"
MAX_PREPARED = 100
"""Maximum number of distinct preparations of the data in one search."""
OPTUNA_AT_A_TIME = 8
"""Trials of Optuna that run or wait for nodes, where an autoscaler starts nodes and fewer fit on those of now."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before its first metrics
    "TUNE_WARN_THRESHOLD_S": "1000",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Search(BaseModel):
    """The summary of a finished search, stored as `search.json`."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    version: str
    metric: str
    trials: int
    finished: int
    stopped: int
    failed: int
    unfinished: int = 0
    """Trials that `tune.time` ended."""
    winner: int
    """Number of the best trial."""
    best: dict[str, float]
    """Metrics of the winner's best validation."""
    settings: dict[str, Any]
    epochs: float
    """Epochs trained, over all trials."""
    epochs_to_the_end: float
    """Epochs that all trials would have trained without early stopping."""
    importance: dict[str, float]
    seconds: float
    """Wall-clock time of this attempt."""
    grid: ResultGrid | None = Field(default=None, exclude=True, repr=False)
    """Ray Tune's results of the trials that ran in this attempt; None if there were none. Not in `search.json`."""
    run_folder: str | None = Field(default=None, exclude=True)
    """Folder of the search; not in `search.json`."""

    @property
    def model(self) -> str:
        """Path of the winner's bundle."""
        return storage.join(self.run_folder or "", "model")

    def _repr_html_(self) -> str:
        """Return the summary as a table for a notebook."""
        facts: list[tuple[str, object]] = [("trials", self.trials), ("winner", self.winner), *self.best.items()]
        facts += self.settings.items()
        return html_table.table(f"Search by {self.metric}", [*facts, ("seconds", self.seconds)])


def check(run: RunConfig) -> None:
    """Check that the settings of a search make sense. Raises `ConfigError` before anything starts."""
    tune, compute = run.tune, run.compute
    if not tune.space:
        raise ConfigError("`tune.space`: nothing to search. Set keys and their values, as in docs/how-to/search.md.")
    if compute.elastic:
        raise ConfigError("`compute.workers`: a search needs a fixed number of workers per trial. Set one number.")
    if tune.mode not in (None, direction(trials.metric(run))):
        raise ConfigError(f"`tune.mode: {tune.mode}` of `{trials.metric(run)}` looks for the worst. Remove `mode`.")
    if run.train.train_on_valid or "train.train_on_valid" in tune.space:
        raise ConfigError(
            "`train.train_on_valid`: trials are compared on the validation rows. Set it to false and pass --refit."
        )
    ranges = [key for key, domain in tune.space.items() if trials.changes_data(key) and not domain.finite]
    if tune.search == "optuna" and ranges:
        raise ConfigError(
            f"`tune.space.{ranges[0]}`: with `search: optuna` a key that changes the data needs `choice`. "
            "List its values."
        )
    if tune.scheduler.kind == "pbt":
        if tune.max_concurrent != "auto" and tune.max_concurrent < tune.total:
            raise ConfigError("`tune.max_concurrent`: a population is trained as a whole. Set `auto`.")
        if compute.max_workers > 1:
            raise ConfigError("`tune.scheduler.kind: pbt` needs trials of one worker. Set `compute.workers: 1`.")
        if fixed := [key for key in tune.space if key not in PERTURBED]:
            raise ConfigError(
                f"`tune.space.{fixed[0]}`: `pbt` changes settings during a run, and this one cannot change. "
                f"Choose from {', '.join(PERTURBED)}."
            )
        if run.model.freeze == "encoder" and (before := [key for key in tune.space if key in OF_ENCODER]):
            raise ConfigError(
                f"`tune.space.{before[0]}`: with `model.freeze: encoder` the vectors may be computed before a trial "
                "begins, and `pbt` changes it later. Remove it from the space."
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
"""Keys that population-based training can change between two steps."""
OF_ENCODER = ("train.token_dropout", "train.adversarial", "model.attention_dropout")
"""Keys of them that change the vectors of an encoder, which are computed once if it is frozen."""


@contextmanager
def opened(run: RunConfig, resume: bool = False, extend: int = 0) -> Iterator[RunConfig]:
    """Create or reopen the folder of a search, hold it while the block runs, and yield the run to use.

    Raises `ConfigError` for an existing folder, a missing one to resume, changed settings, or if another driver works
    in the folder.
    """
    check(run)
    with lease.held(run.run_folder):
        found = _open(run, resume, extend)
        try:
            yield found
        except TxclfError:  # and no stop, which is resumed
            with suppress(TxclfError):  # the first error counts
                lease.require(run.run_folder)
                if not (resume or extend or trials.read(run.run_folder)):  # so that the corrected command starts
                    storage.remove_file(storage.join(run.run_folder, "run.yaml"))
            raise


def _open(run: RunConfig, resume: bool, extend: int) -> RunConfig:
    folder = run.run_folder
    saved = storage.join(folder, "run.yaml")
    if not storage.exists(saved):
        if resume or extend:
            raise ConfigError(f"`{folder}`: no search to resume. Start it without --resume and --extend.")
        for number in range(run.tune.total if run.tune.search != "optuna" else 0):
            trials.draw(run, number)  # all trials must be possible before any starts
        storage.write_bytes(saved, run_config.dump(run).encode())
        return run
    was = run_config.load(saved)
    if storage.exists(storage.join(folder, "prepared.json")):
        raise ConfigError(f"`{folder}` holds a run of `txclf train`. Choose another `name`.")
    if not (resume or extend):
        raise ConfigError(f"`{folder}` exists already. Pass --resume to continue it, or choose another `name`.")
    if "monitor" not in run.train.model_fields_set:
        run = run.model_copy(update={"train": run.train.model_copy(update={"monitor": was.train.monitor})})
    found = ", ".join(changed(_kept(was), _kept(run)).values())
    if found:
        raise ConfigError(f"`{saved}` differs in {found}. Pass the settings of the search, or choose another `name`.")
    count = was.tune.trials + extend
    if was.tune.search == "grid":
        if extend:
            raise ConfigError("--extend: `search: grid` already tries every combination. Use --resume.")
    elif run.tune.trials > count:
        more = run.tune.trials - was.tune.trials
        raise ConfigError(f"`tune.trials: {run.tune.trials}`: the search has {count} trials. Pass --extend {more}.")
    return run.model_copy(update={"tune": run.tune.model_copy(update={"trials": count})})


def _kept(run: RunConfig) -> Settings:
    """Return the settings that a resumed search must keep."""
    sections = run.model_dump(include={"seed", "task", "data", "tokenizer", "model", "train", "distill", "tune"})
    for key in ("trials", "time", "max_concurrent", "keep_ray_folder"):
        del sections["tune"][key]
    return flatten_dotted(sections)


def concurrency(run: RunConfig) -> tuple[int, str]:
    """Return the number of concurrent trials, and a line with the reason. Ray must be connected.

    Raises `ClusterError` if not even one trial fits.
    """
    one = _trial_compute(run)
    compute, workers = run.compute, one.max_workers
    ray_cluster.require(one)
    room, most = ray_cluster.room(one) // workers, run.tune.max_concurrent
    # Optuna learns from the trials that have ended, so not all may wait at once.
    every = OPTUNA_AT_A_TIME if run.tune.search == "optuna" else run.tune.total
    wanted = max(room, every) if most == "auto" else most
    if wanted > room and not ray_cluster.autoscales():  # an autoscaler starts the nodes that the trials wait for
        wanted = room
    each = f"{workers} x {compute.cpus_per_worker:g} CPUs"
    if compute.gpus_per_worker:
        each += f" and {workers} x {compute.gpus_per_worker:g} GPUs"
    return wanted, f"{wanted} trials at a time: each takes {each}, and the cluster has room for {room}"


def _trial_compute(run: RunConfig) -> Compute:
    """Return the processes and devices of a trial, which takes those of a worker if it trains in its own process."""
    return run.compute.model_copy(update={"workers": max(1, run.compute.max_workers)})


def prepare_all(run: RunConfig, note: Callable[[str], None]) -> dict[str, Preparation]:
    """Prepare the data of all possible trials, one after the other, and store their pretrained models.

    The nodes of the trials then need neither the folder of a model nor the hub, and all get the same commit of a
    branch. Trials that have begun keep their data and models. Raises `ConfigError` if the data are gone and the files
    have changed.
    """
    tune = run.tune
    if tune.search == "optuna":
        grid = {key: domain for key, domain in tune.space.items() if trials.changes_data(key)}
        of_data = Tune(search="grid", space=grid)
        each = [trials.trial_config(run, of_data.drawn(number, 0)) for number in range(of_data.total)]
    else:
        known = {trial.number: trial.settings for trial in trials.read(run.run_folder)}
        each = [trials.trial_config(run, known.get(n) or trials.draw(run, n)) for n in range(tune.total)]
    wanted = {trials.preparation(one): one for one in each}
    if len(wanted) > MAX_PREPARED:
        raise ConfigError(
            f"`tune.space` asks for {len(wanted)} preparations of the data; the maximum is {MAX_PREPARED}."
        )
    for one in wanted.values():
        distill.require_teacher(one, pretrains="train.pretrain_epochs" in tune.space)
    begun: dict[str, list[RunConfig]] = {}
    for trial in trials.read(run.run_folder):
        source = trials.run_of(run, trial.number, trial.settings)
        begun.setdefault(trials.preparation(source), []).append(source)
    found, encoders = dict[str, Preparation](), _recorded_encoders(begun)
    for number, (key, one) in enumerate(wanted.items(), 1):
        near = storage.folder_of(run.run_folder)  # where a copy of the search has its data
        recorded = (data for source in begun.get(key, []) if (data := recorded_data(source, near)))
        folder = next(recorded, None) or prepare(one)
        manifest = shards.load_manifest(folder)
        for source in begun.get(key, []):
            has_begun(source, manifest)
        settled = recipes.with_recipe(one, manifest.splits["train"].rows, len(manifest.labels))
        # A trial has the devices of a worker, not those of this process.
        config = WorkerConfig(one, folder)
        check_fit(settled.model_copy(update={"compute": _trial_compute(one)}), config.manifest())
        row_sidecars.ready(config, on_ray=True)  # once for all trials
        if one.model.pretrained and _encoder_key(one) not in encoders:
            from txclf.training import pretrained_network  # and Transformers

            encoders[_encoder_key(one)] = pretrained_network.store(one)
        found[key] = Preparation(folder, encoders.get(_encoder_key(one)))
        if len(wanted) > 1:
            note(f"prepared data {number} of {len(wanted)}: {folder}")
    return found


def _encoder_key(run: RunConfig) -> tuple[str | None, str | None]:
    return run.model.pretrained, run.model.revision


def _recorded_encoders(begun: dict[str, list[RunConfig]]) -> dict[Any, Pretrained]:
    """Return the pretrained models that trials have begun with, as far as they are in the storage."""
    found = dict[Any, Pretrained]()
    for source in (source for sources in begun.values() for source in sources):
        key = _encoder_key(source)
        if key not in found and (folder := recorded_encoder(source)) and storage.exists(folder):
            commit = run_config.load(storage.join(source.run_folder, "run.yaml")).model.revision
            found[key] = Pretrained(folder, commit)
    return found


def plan(run: RunConfig, note: Callable[[str], None] = lambda text: None) -> SearchPlan:
    """Return the number of concurrent trials and their prepared data. Ray must be connected.

    Raises `ClusterError` if not even one trial fits.
    """
    at_a_time, reason = concurrency(run)
    note(reason)
    if unused := ray_cluster.unused_gpus(run.compute):
        note(unused)
    return SearchPlan(at_a_time, prepare_all(run, note))


def tune(run: RunConfig, plan: SearchPlan, show: Show = lambda state: False) -> Search:
    """Run a search of `opened` to its end and return its summary. Ray must be connected.

    Raises `Interrupted` if `show` asked for a stop.
    """
    started = time.time()
    lease.require(run.run_folder)
    # Not before: a search whose Ray does not answer is not yet extended.
    storage.write_bytes(storage.join(run.run_folder, "run.yaml"), run_config.dump(run).encode())
    manifest = shards.load_manifest(next(iter(plan.prepared.values())).folder)
    if "model.pretrained" not in run.tune.space:  # otherwise each trial has the recipe of its kind
        run = recipes.with_recipe(run, manifest.splits["train"].rows, len(manifest.labels))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are reported as the trial's reason
    search, metric = run.run_folder, trials.metric(run)
    if run.tune.search != "optuna":
        existing = {trial.number for trial in trials.read(search)}
        for number in range(run.tune.total):
            if number not in existing:
                trials.write(search, Trial(number=number, settings=trials.draw(run, number)))
    results = [trials.result(search, trial, metric) for trial in trials.read(search)]
    # Trials that were running resume first.
    pending = [result.trial for result in results if result.trial.state in ("running", "waiting")]
    pending.sort(key=lambda trial: (trial.state != "running", trial.number))
    new = run.tune.total - len(results) if run.tune.search == "optuna" else 0
    grid = None
    if pending or new > 0:
        storage.remove_file(storage.join(search, SUMMARY))  # of the search before it was extended
        for trial in pending:
            ray_trainer.release(trials.folder(search, trial.number))
        with ray_cluster.environment(SETTINGS):
            grid = run_trials(run, plan, results, pending, show)
    return _finish(run, plan.prepared, started).model_copy(update={"grid": grid})


def _as_begun(run: RunConfig, trial: Trial) -> RunConfig:
    """Return the run of a trial with what its rows settled, which depends on the kind of its model."""
    found = trials.run_of(run, trial.number, trial.settings)
    path = storage.join(found.run_folder, "run.yaml")
    if "model.pretrained" not in run.tune.space or not storage.exists(path):
        return found
    return recipes.as_begun(found, run_config.load(path))


def _finish(run: RunConfig, prepared: dict[str, Preparation], started: float) -> Search:
    """Write the tables, the winner's run file and bundle, then the summary, which marks the search as finished."""
    search, metric = run.run_folder, trials.metric(run)
    lease.require(search)
    everything = [trials.result(search, trial, metric) for trial in trials.read(search)]
    for one in everything:
        if one.trial.state == "waiting":  # when `tune.time` was over; with --resume it is drawn again
            storage.remove_folder(trials.folder(search, one.trial.number))
    results = trials.ranked([one for one in everything if one.trial.state != "waiting"], metric)
    trials.write_table(search, results, metric)
    winner = results[0]
    best = trials.trial_config(run, winner.trial.settings)
    source = trials.run_of(run, winner.trial.number, winner.trial.settings)
    saved = checkpoints.committed(storage.join(source.run_folder, "checkpoints"))
    if math.isnan(winner.best) or not checkpoints.ranked(saved, metric):
        if not winner.trial.reason:
            raise ClusterError(f"no trial came to a validation within `tune.time` ({run.tune.time}). Raise it.")
        raise ClusterError(f"no trial came to a validation; the first failed because: {winner.trial.reason}")
    model, data = storage.join(search, "model"), prepared[trials.preparation(source)].folder
    best = recipes.as_begun(best, run_config.load(storage.join(source.run_folder, "run.yaml")))
    storage.write_bytes(storage.join(search, BEST), run_config.dump(best).encode())
    encoder = recorded_encoder(source)
    chosen = save_bundle(model, best, data, saved, encoder=encoder, on_ray=True)
    lease.require(search)
    states = [one.trial.state for one in results]
    summary = Search(
        version=__version__,
        metric=metric,
        trials=len(results),
        finished=states.count("finished"),
        stopped=states.count("stopped"),
        failed=states.count("failed"),
        unfinished=states.count("running"),
        winner=winner.trial.number,
        best=chosen.metrics,
        settings=winner.trial.settings,
        epochs=sum(one.epochs for one in results),
        epochs_to_the_end=sum(_as_begun(run, one.trial).train.epochs for one in results),
        importance=trials.importance(run, results),
        seconds=time.time() - started,
        run_folder=search,
    )
    storage.write_json(storage.join(search, SUMMARY), summary.model_dump())
    return summary
