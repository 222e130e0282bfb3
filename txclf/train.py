"""`txclf train`: prepared data to a run folder with a model bundle.

    run folder/run.yaml         the resolved run file, written before the first step
               prepared.json    where the prepared data lie
               metrics.jsonl    a line per log interval and per validation
               checkpoints/     the best few and the last
               tensorboard/
               model/           the bundle, made from the best checkpoint
               summary.json     written last: it marks the run as finished

One worker function serves a run in this process (`compute.workers: 0`) and the workers of Ray Train: they differ only
in where the rows come from and where the progress goes.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from txclf import __version__, bundle, checkpoints, config, stages, storage, worker
from txclf.callbacks import Interrupted, Progress
from txclf.config import RunConfig, anchored
from txclf.data import shards
from txclf.errors import ConfigError, TxclfError
from txclf.module import choose_precision, class_weights, uses_gpu
from txclf.worker import COLUMNS, Job, Place

SUMMARY = "summary.json"
PREPARED = "prepared.json"

Report = Callable[[Progress], bool]
"""Takes the progress, says whether to stop."""


class Summary(BaseModel):
    """What a finished run was; `summary.json`."""

    model_config = ConfigDict(frozen=True)

    version: str
    prepared: str
    """The prepared folder it learned from."""
    workers: int
    device: str
    precision: str
    parameters: int
    best_step: int
    best: dict[str, float]
    """Metrics of the validation that the bundle comes from."""
    steps: int
    epochs: float
    rows_seen: int
    stopped_early: bool
    padding_share: float
    tokens_per_second: float
    """Real tokens over the seconds of steps and data."""
    seconds: dict[str, float]
    """`startup`, `data`, `steps`, `validation`, `checkpoints`, `total`, of the last session of the run."""


def check_folder(run: RunConfig, resume: bool) -> Summary | None:
    """Refuses a run folder that is taken, or not there to resume; a finished run's summary when resumed."""
    run = anchored(run)
    folder = run.run_folder
    saved = storage.join(folder, "run.yaml")
    if not storage.exists(saved):
        if resume:
            raise ConfigError(f"`{folder}`: no run to resume: start it without --resume")
        storage.require_writable(folder)
        return None
    if not resume:
        raise ConfigError(f"`{folder}` is there already: go on with --resume, or choose another `name`")
    before = config.load(saved)
    changed = [
        key
        for key in ("seed", "task", "data", "tokenizer", "model", "train")
        if getattr(before, key) != getattr(run, key)
    ]
    if changed:
        names = ", ".join(f"`{key}`" for key in changed)
        raise ConfigError(f"`{saved}` differs from what is asked in {names}: a resumed run keeps its settings")
    summary = storage.join(folder, SUMMARY)
    return Summary.model_validate(storage.read_json(summary)) if storage.exists(summary) else None


def check_fit(run: RunConfig, manifest: shards.Manifest) -> None:
    """Raises `ConfigError` when the batches cannot be made from these data on these workers."""
    rows = manifest.splits["train"].rows
    size, world, parts = run.train.batch_size, max(1, run.compute.workers), run.train.accumulate
    if size > rows:
        raise ConfigError(f"`train.batch_size` ({size}) is larger than the training split ({rows} rows)")
    if size < world * parts:
        raise ConfigError(
            f"`train.batch_size` ({size}) has fewer rows than `compute.workers` x `train.accumulate` ({world * parts})"
        )
    if not (run.compute.workers and uses_gpu(run.compute)):  # a worker's GPU may not be seen from here
        choose_precision(run.train.precision, uses_gpu(run.compute))
    class_weights(run.train.class_weights, manifest.splits["train"].label_counts)


def train(run: RunConfig, prepared: str, report: Report, started: float | None = None) -> Summary:
    """Trains a run on prepared data, going on from its last checkpoint if there is one, and makes the bundle.

    Raises `Interrupted` when `report` asked for a stop; the checkpoint is saved then.
    """
    run = anchored(run)
    job = Job(run, prepared, time.time() if started is None else started)
    manifest = shards.load_manifest(prepared)
    check_fit(run, manifest)
    outcome = _fit_on_ray(job, report) if run.compute.workers else _fit_here(job, report)
    return _finish(job, manifest, outcome)


def _finish(job: Job, manifest: shards.Manifest, outcome: dict[str, Any]) -> Summary:
    """The bundle from the best checkpoint, then the summary, which marks the run as finished."""
    run = job.config
    saved = checkpoints.committed(storage.join(run.run_folder, "checkpoints"))
    winner = checkpoints.ranked(saved, run.train.monitor)[0]
    state = checkpoints.load(winner)
    summary = Summary(
        version=__version__,
        prepared=job.prepared,
        workers=run.compute.workers,
        best_step=winner.step,
        best=winner.metrics,
        **outcome,
    )
    bundle.save(
        storage.join(run.run_folder, "model"),
        run,
        state.get("average") or state["model"],
        manifest.labels,
        storage.read_bytes(storage.join(job.prepared, shards.TOKENIZER)).decode(),
        {name: float(value) for name, value in winner.metrics.items()},
        {split: part.rows for split, part in manifest.splits.items()},
    )
    storage.write_json(storage.join(run.run_folder, SUMMARY), summary.model_dump())
    return summary


def recorded_data(run: RunConfig) -> str | None:
    """The prepared folder that a run began with; None for a new run."""
    path = storage.join(run.run_folder, PREPARED)
    return str(storage.read_json(path)["folder"]) if storage.exists(path) else None


def _begin(job: Job) -> None:
    """Writes what makes the folder a run's, after all checks; a resumed run has it already."""
    folder = job.config.run_folder
    if not storage.exists(storage.join(folder, "run.yaml")):
        storage.write_json(storage.join(folder, PREPARED), {"folder": job.prepared})
        storage.write_bytes(storage.join(folder, "run.yaml"), config.dump(job.config).encode())


def _fit_here(job: Job, report: Report) -> dict[str, Any]:
    manifest = shards.load_manifest(job.prepared)
    _begin(job)
    return worker.fit(job, lambda split: shards.read_split(job.prepared, manifest, split, COLUMNS), report, Place())


def _fit_on_ray(job: Job, report: Report) -> dict[str, Any]:
    """Ray Train with Ray Data; the main thread shows the progress and takes the signals."""
    import ray

    from txclf import cluster

    with cluster.connected(job.config.compute):
        cluster.require(job.config.compute)
        _begin(job)
        board: Any = ray.remote(num_cpus=0)(Board).remote()
        outcome: dict[str, Any] = {}
        thread = threading.Thread(target=_run_trainer, args=(job, board, outcome), daemon=True)
        thread.start()
        shown = Progress()
        while thread.is_alive():
            thread.join(timeout=0.3)
            shown = ray.get(board.latest.remote()) or shown
            if report(shown):
                board.ask_stop.remote()
        failure = ray.get(board.failed.remote())
        if failure is not None or "error" in outcome:
            raise failure or outcome["error"]
        report(ray.get(board.latest.remote()) or shown)
        if outcome["result"] is None:
            raise Interrupted
        return dict(outcome["result"])


class Board:
    """An actor where the workers leave their progress and find whether the driver wants a stop."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.stop = False
        self.failure: TxclfError | None = None

    def post(self, progress: Progress) -> bool:
        self.progress = progress
        return self.stop

    def latest(self) -> Progress | None:
        return self.progress

    def ask_stop(self) -> None:
        self.stop = True

    def fail(self, error: TxclfError) -> None:
        self.failure = self.failure or error

    def failed(self) -> TxclfError | None:
        return self.failure


def _run_trainer(job: Job, board: Any, outcome: dict[str, Any]) -> None:
    """Runs Ray Train to its end; leaves the result of rank 0 or the error in `outcome`."""
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    compute = job.config.compute
    # Ray's own state goes to a fresh folder each time: it resumes by name, and checkpoints of ours know better.
    scratch = storage.join(job.config.run_folder, ".ray")
    try:
        resources = {"CPU": compute.cpus_per_worker}
        if compute.gpus_per_worker:
            resources["GPU"] = compute.gpus_per_worker
        trainer = TorchTrainer(
            _work_on_ray,  # type: ignore[arg-type]
            train_loop_config={"job": job, "board": board},
            scaling_config=ScalingConfig(
                num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=compute.max_failures),
            ),
            datasets={split: _dataset(job.prepared, split) for split in ("train", "valid")},
            # Each rank picks its rows of each global batch itself, so none of Ray's splitting drops or repeats any.
            dataset_config=DataConfig(datasets_to_split=[]),
        )
        outcome["result"] = trainer.fit().return_value  # type: ignore[attr-defined]
    except BaseException as error:
        outcome["error"] = _cause(error)
    finally:
        storage.remove_folder(scratch)


def _cause(error: BaseException) -> BaseException:
    """The user's error that Ray's errors are wrapped around, or the error itself."""
    failures = getattr(error, "worker_failures", None) or {}
    for inner in [*failures.values(), getattr(error, "cause", None), error.__cause__]:
        if isinstance(inner, TxclfError):
            return inner
        if isinstance(inner, BaseException) and inner is not error:
            found = _cause(inner)
            if isinstance(found, TxclfError):
                return found
    return error


def _dataset(prepared: str, split: str) -> Any:
    """The rows of a split in the object store, in prepared order: one copy for all the workers of a node."""

    def read(shard: shards.Shard) -> stages.Tables:
        yield shards.read_shard(prepared, shard, COLUMNS)

    return stages.dataset(read, shards.load_manifest(prepared).splits[split].shards).materialize()


def _work_on_ray(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker of Ray Train runs; None when it was interrupted."""
    import ray
    from ray.train import get_context, get_dataset_shard
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    job, board = settings["job"], settings["board"]
    context = get_context()
    torch.set_num_threads(max(1, int(job.config.compute.cpus_per_worker)))
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # Buffers are equal by construction, and broadcasting them would hang ranks with fewer validation batches.
    place = (
        Place(rank, world_size, RayDDPStrategy(broadcast_buffers=False), (RayLightningEnvironment(),))  # type: ignore[no-untyped-call]
        if world_size > 1
        else Place()
    )
    asked: list[Any] = []

    def report(progress: Progress) -> bool:
        """Posts without waiting; the answer to the post before says whether to stop."""
        stop = bool(ray.get(asked.pop())) if asked else False
        asked.append(board.post.remote(progress))
        return stop

    def rows(split: str) -> pa.Table:
        return pa.concat_tables(get_dataset_shard(split).iter_batches(batch_size=None, batch_format="pyarrow"))

    if ray.get(board.failed.remote()) is not None:
        return None  # Ray Train starts workers again after any error, and this one would only come back
    try:
        return worker.fit(job, rows, report, place)
    except Interrupted:
        return None
    except TxclfError as error:
        ray.get(board.fail.remote(error))
        raise
