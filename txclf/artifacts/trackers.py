"""Experiment trackers: MLflow and Weights & Biases receive the run file and each line of `metrics.jsonl`.

Both are optional packages with their own settings (`MLFLOW_TRACKING_URI`, `WANDB_MODE`, …). `trackers.json` in the run
folder stores the ids of the trackers' runs, so that a resumed run continues them.
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
from txclf.core.text import message

IDS_FILE = "trackers.json"
MAX_PARAMETER_LENGTH = 6000
"""Maximum length of an MLflow parameter in characters."""

Status = Literal["FINISHED", "KILLED", "FAILED"]


class Tracker(Protocol):
    """Receiver of the metrics of one run, on rank 0."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""

    def close(self, status: Status) -> None:
        """End the tracker's run."""


def require(run: RunConfig) -> None:
    """Raise `ConfigError` if a tracker's package is missing, or if Ray workers could not reach MLflow."""
    for name in run.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"`train.trackers`: `{name}` is not installed. Run `pip install 'txclf[{name}]'`.")
    if "mlflow" in run.train.trackers and run.compute.on_ray and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "`train.trackers`: MLflow needs one server for all workers. Set MLFLOW_TRACKING_URI to its URI."
        )


def parameters(run: RunConfig) -> dict[str, str]:
    """Return the resolved run file without `tune`, by dotted key."""
    settings = flatten_dotted(run.model_dump(mode="json", exclude={"tune"}))
    return {key: str(value) for key, value in settings.items()}


def open_trackers(run: RunConfig) -> Tracker:
    """Return all trackers of a run as one, and continue the trackers' runs of an earlier attempt.

    Raises `ConfigError` if one of them cannot be reached.
    """
    path = storage.join(run.run_folder, IDS_FILE)
    ids: dict[str, str] = storage.read_object(path) if run.train.trackers and storage.exists(path) else {}
    trackers: dict[str, Tracker] = {}
    kinds: dict[str, Callable[[RunConfig, str | None], Any]] = {"mlflow": Mlflow, "wandb": Wandb}
    for name in run.train.trackers:
        try:
            tracker = kinds[name](run, ids.get(name))
        except Exception as error:  # each package has its own errors
            raise ConfigError(
                f"`train.trackers`: `{name}` cannot be used: {error}. Fix its settings, or remove it."
            ) from error
        trackers[name] = tracker
        if ids.get(name) != tracker.id:
            ids[name] = tracker.id
            storage.write_json(path, ids)
    return TrackerGroup(trackers)


class TrackerGroup:
    """Several trackers as one. A tracker that fails is dropped with a warning, because the run matters more."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self.trackers = trackers

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._call_each(lambda tracker: tracker.write(step, values))

    def close(self, status: Status) -> None:
        self._call_each(lambda tracker: tracker.close(status))

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                del self.trackers[name]
                logging.getLogger("txclf").warning(
                    "%s failed and is not used for the rest of this run: %s", name, message(str(error))
                )


class Mlflow:
    """MLflow run, in the experiment `MLFLOW_EXPERIMENT_NAME`, by default `txclf`."""

    def __init__(self, run: RunConfig, known_id: str | None) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        if known_id:
            self.id = known_id
            self.client.update_run(known_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "txclf")
        tags = {"txclf.folder": run.run_folder}
        self.id = self.client.create_run(self._experiment(name), run_name=run.name, tags=tags).info.run_id
        self._log(params=list(parameters(run).items()))

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if necessary."""
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another trial of the search has created it
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _log(self, params: Sequence[tuple[str, str]] = (), metrics: Sequence[tuple[str, float, int]] = ()) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.id,
            metrics=[Metric(name, value, now, step) for name, value, step in metrics],
            params=[Param(name, text[:MAX_PARAMETER_LENGTH]) for name, text in params],
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._log(metrics=[(name, value, step) for name, value in values.items()])

    def close(self, status: Status) -> None:
        self.client.set_terminated(self.id, status)


class Wandb:
    """Weights & Biases run, in the project `WANDB_PROJECT`, by default `txclf`."""

    def __init__(self, run: RunConfig, known_id: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "txclf")
        settings = wandb.Settings(console="off", silent=True)
        self.run = wandb.init(
            project=project,
            name=run.name,
            id=known_id,
            resume="allow",
            config=parameters(run),
            settings=settings,
            allow_val_change=True,  # `compute` may change on resume
            reinit="create_new",
        )
        self.id = str(self.run.id)
        # The steps of wandb must increase, but a resumed run repeats some.
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self, status: Status) -> None:
        self.run.finish(exit_code=0 if status == "FINISHED" else 1)
