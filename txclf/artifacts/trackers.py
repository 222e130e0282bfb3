"""Experiment trackers: MLflow and Weights & Biases get what `metrics.jsonl` gets, and the run file as parameters.

Both are optional packages. Where they write is their own setting (`MLFLOW_TRACKING_URI`, `WANDB_MODE`, …). The names
under which they know a run lie in its folder, in `trackers.json`, so that a resumed run goes on there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from txclf.config.dotted import flatten_dotted
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError

IDS = "trackers.json"
LONGEST = 6000
"""Characters of a parameter that MLflow takes."""

Status = Literal["FINISHED", "KILLED", "FAILED"]


class Tracker(Protocol):
    """What is fed by the log, on rank 0."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, status: Status) -> None: ...


def require(run: RunConfig) -> None:
    """Raises `ConfigError` for a tracker whose package is not there, or that workers would not find."""
    for name in run.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"`train.trackers`: `{name}` is not installed: pip install txclf[{name}]")
    if "mlflow" in run.train.trackers and run.compute.on_ray and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError("`train.trackers`: set MLFLOW_TRACKING_URI to a place that all workers reach")


def parameters(run: RunConfig) -> dict[str, str]:
    """The resolved run file, a dotted key each; without `tune`."""
    settings = flatten_dotted(run.model_dump(mode="json", exclude={"tune"}))
    return {key: str(value) for key, value in settings.items()}


def opened(run: RunConfig) -> Tracker:
    """All trackers of a run as one; where the run was tracked before, it goes on there.

    Raises `ConfigError` when one of them cannot be reached.
    """
    path = storage.join(run.run_folder, IDS)
    ids: dict[str, str] = storage.read_json(path) if run.train.trackers and storage.exists(path) else {}
    trackers: dict[str, Tracker] = {}
    kinds: dict[str, Callable[[RunConfig, str | None], Any]] = {"mlflow": Mlflow, "wandb": Wandb}
    for name in run.train.trackers:
        try:
            tracker = kinds[name](run, ids.get(name))
        except Exception as error:  # each package has errors of its own kinds
            raise ConfigError(f"`train.trackers`: `{name}` cannot be used: {error}") from error
        trackers[name] = tracker
        if ids.get(name) != tracker.id:
            ids[name] = tracker.id
            storage.write_json(path, ids)
    return Several(trackers)


class Several:
    """Trackers of which one that fails is left out from then on: a run is worth more than its curves elsewhere."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self.trackers = trackers

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.write(step, values))

    def close(self, status: Status) -> None:
        self._each(lambda tracker: tracker.close(status))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self.trackers[name]
                logging.getLogger("txclf").warning("%s failed and gets no more of this run: %s", name, error)


class Mlflow:
    """A run of MLflow, in the experiment `MLFLOW_EXPERIMENT_NAME` (else `txclf`)."""

    def __init__(self, run: RunConfig, known: str | None) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        if known:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "txclf")
        tags = {"txclf.folder": run.run_folder}
        self.id = self.client.create_run(self._experiment(name), run_name=run.name, tags=tags).info.run_id
        self._log(params=list(parameters(run).items()))

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another trial of the search was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _log(self, params: Sequence[tuple[str, str]] = (), metrics: Sequence[tuple[str, float, int]] = ()) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.id,
            metrics=[Metric(name, value, now, step) for name, value, step in metrics],
            params=[Param(name, text[:LONGEST]) for name, text in params],
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._log(metrics=[(name, value, step) for name, value in values.items()])

    def close(self, status: Status) -> None:
        self.client.set_terminated(self.id, status)


class Wandb:
    """A run of Weights & Biases, in the project `WANDB_PROJECT` (else `txclf`)."""

    def __init__(self, run: RunConfig, known: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "txclf")
        settings = wandb.Settings(console="off", silent=True)
        self.run = wandb.init(
            project=project,
            name=run.name,
            id=known,
            resume="allow",
            config=parameters(run),
            settings=settings,
            allow_val_change=True,  # where it runs may change on resume
            reinit="create_new",
        )
        self.id = str(self.run.id)
        # Steps by our own count: those of wandb may only grow, and a resumed run repeats some.
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self, status: Status) -> None:
        self.run.finish(exit_code=0 if status == "FINISHED" else 1)
