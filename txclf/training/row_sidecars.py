"""The sidecars that a run reads next to its rows: which they are, and computing them.

A network reads each row once. Runs on the same prepared data, resumed runs and trials share the values. On Ray, tasks
with the resources of a worker compute them, as many at a time as there are workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

from txclf.core import openmp, storage
from txclf.core.errors import ConfigError
from txclf.data.batches import ENCODED, TEACHER
from txclf.data.sidecars import RowGroup, Sidecar
from txclf.training import distill, encoded_rows, fitting
from txclf.training.job import WorkerConfig
from txclf.training.progress import Interrupted, Progress

Show = Callable[[int], None]
"""Receives the number of rows done since the last call."""
TASK_TOKENS = 2**20
"""Tokens of the rows of a task on Ray without a GPU."""
GPU_TASK_TOKENS = 2**25
"""Tokens of the rows of a task on Ray with a GPU, which needs a new process."""


class Kind(NamedTuple):
    """One kind of sidecar."""

    of_run: Callable[[WorkerConfig], Sidecar | None]
    """Returns the sidecar that a run reads, or None."""
    store: Callable[[WorkerConfig, Sidecar, Sequence[RowGroup], Show], None]
    """Computes and stores the values of some row groups."""
    stage: str
    """What the network does, for the progress."""


KINDS = {
    TEACHER: Kind(distill.sidecar, distill.store, "the teacher answers the rows"),
    ENCODED: Kind(encoded_rows.sidecar, encoded_rows.store, "the frozen encoder reads the rows"),
}


def ready(
    config: WorkerConfig,
    began: Sequence[Sidecar] = (),
    *,
    begin: Callable[[WorkerConfig], None] = lambda config: None,
    report: Callable[[Progress], bool] = lambda progress: False,
    notes: Sequence[str] = (),
    on_ray: bool | None = None,
) -> WorkerConfig:
    """Return the configuration with the sidecars of the run, after computing what is not stored yet.

    `began` are those that a resumed run began with: once they are stored, the networks may be gone. `begin` is called
    before anything is computed. `report` receives the progress with `notes`. `on_ray` is True to compute on the
    connected Ray, by default if the run does.

    Raises `ConfigError` if a network does not fit the data or changed, `Interrupted` if `report` asked for a stop.
    """
    recorded = {sidecar.column: sidecar for sidecar in began}
    found = []
    for column, kind in KINDS.items():
        known = recorded.get(column)
        sidecar = known if known and not missing(config, known) else kind.of_run(config)
        if known and sidecar != known:
            raise ConfigError(
                f"`{config.run.run_folder}` began with other `{column}`, whose network changed. Start a new run."
            )
        if sidecar:
            found.append(sidecar)
    config = replace(config, sidecars=tuple(found))
    if any(missing(config, sidecar) for sidecar in found):
        begin(config)
    for sidecar in found:
        _compute(config, sidecar, report, notes, config.run.compute.on_ray if on_ray is None else on_ray)
    return config


def missing(config: WorkerConfig, sidecar: Sidecar) -> list[RowGroup]:
    """Return the row groups that the run reads and whose values are not stored yet."""
    splits = config.manifest().splits
    files = {shard.file: shard for split in sidecar.splits for shard in splits[split].shards}
    return sidecar.missing(config.prepared, files.values())


def _compute(
    config: WorkerConfig,
    sidecar: Sidecar,
    report: Callable[[Progress], bool],
    notes: Sequence[str],
    on_ray: bool,
) -> None:
    if not missing(config, sidecar):
        return
    kind, folder = KINDS[sidecar.column], storage.join(config.prepared, sidecar.name)
    with fitting.alone(folder, report, notes, "computes the same values"):
        groups = missing(config, sidecar)
        if not groups:
            return  # another run has stored them meanwhile
        total, done = sum(group.rows for group in groups), 0

        def show(rows: int) -> None:
            nonlocal done
            done += rows
            if report(Progress("preparing", done, total, notes=[*notes, kind.stage])):
                raise Interrupted

        if on_ray:
            _on_ray(config, sidecar, groups, show)
        else:
            with openmp.spinning_on_free_cpus():
                kind.store(config, sidecar, groups, show)


def _on_ray(config: WorkerConfig, sidecar: Sidecar, groups: list[RowGroup], show: Show) -> None:
    """Compute the values of row groups by tasks on Ray. A stop waits for the tasks that run."""
    from txclf.training.distributed import worker_task

    needs = config.run.compute
    limit = GPU_TASK_TOKENS if needs.gpus_per_worker else TASK_TOKENS
    with ThreadPoolExecutor(max(1, needs.max_workers)) as pool:
        calls = [pool.submit(worker_task.call, needs, _store, config, sidecar, part) for part in _tasks(groups, limit)]
        pending: set[Future[int]] = set(calls)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                show(sum(call.result() for call in done))
        finally:
            pool.shutdown(cancel_futures=True)


def _store(config: WorkerConfig, sidecar: Sidecar, groups: Sequence[RowGroup]) -> int:
    """Compute and store the values of row groups; return the number of their rows."""
    KINDS[sidecar.column].store(config, sidecar, groups, lambda rows: None)
    return sum(group.rows for group in groups)


def _tasks(groups: Sequence[RowGroup], limit: int) -> Iterator[list[RowGroup]]:
    """Yield row groups in parts of about `limit` tokens."""
    part: list[RowGroup] = []
    for group in groups:
        part.append(group)
        if sum(each.tokens for each in part) >= limit:
            yield part
            part = []
    if part:
        yield part
