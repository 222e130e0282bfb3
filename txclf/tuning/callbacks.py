"""Callbacks of Ray Tune that write the state of each trial to its `trial.json` and keep it for the display."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.logger import JsonLoggerCallback

from txclf.artifacts import trials
from txclf.artifacts.metric_logger import LogReader
from txclf.artifacts.trials import Result, Trial
from txclf.config.run_config import RunConfig
from txclf.core import lease, storage
from txclf.core.errors import TxclfError
from txclf.training.distributed import ray_trainer

DIED = "its process was killed, or its node lost"
"""Cause of a failure of which no more is known."""


class TrialError(Exception):
    """An unexpected error in a trial, whose process may be broken; the message is the reason."""


class SearchState:
    """The trials of a running search, and notes for the user. Updated by `Watcher`."""

    def __init__(self, run: RunConfig, results: list[Result]) -> None:
        self.metric, self.keys = trials.metric(run), list(run.tune.space)
        self.results = {result.trial.number: result for result in results}
        self.total = run.tune.total
        self.notes: list[str] = []
        self.events: list[Result] = []
        """The trials after each of their events, in order."""
        self.began: dict[int, float] = {}

    def seconds(self, number: int) -> float:
        """Return the seconds that a trial has run so far."""
        trial = self.results[number].trial
        return trial.seconds + (time.time() - self.began.get(number, time.time()) if trial.state == "running" else 0.0)


class Watcher(tune.Callback):
    """A callback that records the events of the trials."""

    def __init__(self, search: str, state: SearchState) -> None:
        self.search, self.state = search, state
        self.stopping = False
        self.live = set[int]()
        """Numbers of the running trials."""
        self.logs: dict[int, LogReader] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark a trial as running."""
        if self.stopping:
            return
        known = self._read(trial)
        self.live.add(known.number)
        self.state.began.setdefault(known.number, time.time())
        self._note(known.model_copy(update={"state": "running"}))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a judged validation, and the takeover that preceded it."""
        if self.stopping:  # Tune gets unjudged validations again after a resume
            return
        known, wanted = self._read(trial), trial.config["trial"]
        update: dict[str, Any] = {} if result.get("done") else {"judged": result["step"]}
        takeover = wanted.get("takeover", {"id": None})
        # The result that led to a takeover still belongs to the trial before it.
        taken = takeover["id"] is not None and takeover["id"] == result.get("takeover")
        if taken and takeover["id"] not in [change["id"] for change in known.changes]:
            changes = [*known.changes, {**takeover, "settings": wanted["settings"]}]
            update |= {"settings": wanted["settings"], "changes": changes}
        if update:
            self._note(known.model_copy(update=update))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the end of a trial: finished, stopped or failed."""
        known, reason = self._read(trial), (trial.last_result or {}).get("failed")
        self.live.discard(known.number)
        if self.stopping:  # it can be resumed
            self._write(known.model_copy(update={"seconds": self._seconds(known)}))
            return
        finished = storage.exists(storage.join(self._folder(known.number), "summary.json"))
        self._end(known, "failed" if reason else "finished" if finished else "stopped", reason or "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the failure of a trial's process and release its workers."""
        known = self._read(trial)
        self.live.discard(known.number)
        lease.require(self.search)
        ray_trainer.release(self._folder(known.number))
        self._end(known, "failed", _reason(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the restart of a trial whose process failed."""
        number = trial.config["trial"]["number"]
        self.state.notes.append(f"trial {number:04d}: {_cause(trial)}; it resumes from its last checkpoint")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Name the settings of each trial in Ray Tune's results as the run file does."""
        for trial in trials:
            trial.config = flat_config(trial.config["trial"])

    def _read(self, trial: Any) -> Trial:
        return trials.read_one(self.search, trial.config["trial"]["number"])

    def _folder(self, number: int) -> str:
        return trials.folder(self.search, number)

    def _end(self, trial: Trial, state: str, reason: str) -> None:
        self._note(trial.model_copy(update={"state": state, "reason": reason, "seconds": self._seconds(trial)}))

    def _seconds(self, trial: Trial) -> float:
        return trial.seconds + time.time() - self.state.began.get(trial.number, time.time())

    def _write(self, trial: Trial) -> None:
        lease.require(self.search)
        trials.write(self.search, trial)

    def _note(self, trial: Trial) -> None:
        self._write(trial)
        log = self.logs.setdefault(trial.number, LogReader(self._folder(trial.number)))
        result = trials.result(self.search, trial, self.state.metric, log.read())
        self.state.results[trial.number] = result
        self.state.events.append(result)


def flat_config(trial: dict[str, Any]) -> dict[str, Any]:
    """Return the number and the settings of a trial as Ray Tune's results show them."""
    return {"trial": trial["number"], **trial["settings"]}


class ResultLog(JsonLoggerCallback):
    """Ray Tune's log of results, whose files are closed also for the trials that a search leaves unfinished."""

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for trial in trials:
            self.log_trial_end(trial)


class Stopper(tune.Stopper):
    """A stopper that ends the search once `asked` is True."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False, because no single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Return True if the search is to end."""
        return self.asked


def _reason(trial: Any) -> str:
    """Return the reason why a trial has failed for good, in one line."""
    cause = _cause(trial)
    return f"{cause}, more often than `compute.max_failures`" if cause == DIED else cause


def _cause(trial: Any) -> str:
    """Return what made a trial's process fail, in one line."""
    path = trial.pickled_error_file or trial.error_file
    if not path:
        return DIED
    with open(path, "rb") as file:
        error = cloudpickle.load(file) if path == trial.pickled_error_file else file.read().decode()
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out of memory: Ray ended its process"
    if isinstance(error, ray.exceptions.RayActorError):
        return DIED
    if isinstance(cause := getattr(error, "cause", None), TrialError | TxclfError):
        return str(cause)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
