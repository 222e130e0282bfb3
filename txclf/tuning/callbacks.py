"""What happens to the trials of a search, written down as it happens: to their `trial.json`, and for the screen."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import cloudpickle, tune

from txclf.artifacts import trials
from txclf.artifacts.trials import Result, Trial
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.training.distributed import ray_trainer


class SearchState:
    """How a search stands: its trials, and notes for the user. Kept by `Watcher`."""

    def __init__(self, run: RunConfig, results: list[Result]) -> None:
        self.metric, self.keys = trials.metric(run), list(run.tune.space)
        self.results = {one.trial.number: one for one in results}
        self.total = run.tune.total
        self.notes: list[str] = []
        self.events: list[Result] = []
        """Trials after each thing that happened to them, in order."""
        self.began: dict[int, float] = {}

    def seconds(self, number: int) -> float:
        """Time that a trial ran, so far."""
        trial = self.results[number].trial
        return trial.seconds + (time.time() - self.began.get(number, time.time()) if trial.state == "running" else 0.0)


class Watcher(tune.Callback):
    """Writes down what happens to the trials."""

    def __init__(self, search: str, standing: SearchState) -> None:
        self.search, self.standing = search, standing
        self.stopping = False
        self.live = set[int]()
        """Trials that run."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.stopping:
            return
        known = self._read(trial)
        self.live.add(known.number)
        self.standing.began.setdefault(known.number, time.time())
        self._note(known.model_copy(update={"state": "running"}))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("done") or self.stopping:  # what is not judged now is told again after a resume
            return
        known, wanted = self._read(trial), trial.config["trial"]
        update: dict[str, Any] = {"judged": result["step"]}
        takeover = wanted.get("takeover", {"id": None})
        # The result that led to a takeover is still of the trial as it was before.
        taken = takeover["id"] is not None and takeover["id"] == result["takeover"]
        if taken and takeover["id"] not in [change["id"] for change in known.changes]:
            changes = [*known.changes, {**takeover, "settings": wanted["settings"]}]
            update |= {"settings": wanted["settings"], "changes": changes}
        self._note(known.model_copy(update=update))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.live.discard(trial.config["trial"]["number"])
        if self.stopping:
            return
        known, reason = self._read(trial), (trial.last_result or {}).get("failed")
        finished = storage.exists(storage.join(self._folder(known.number), "summary.json"))
        self._end(known, "failed" if reason else "finished" if finished else "stopped", reason or "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._read(trial)
        self.live.discard(known.number)
        ray_trainer.release(self._folder(known.number))
        self._end(known, "failed", _reason(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["trial"]["number"]
        self.standing.notes.append(f"trial {number:04d}: its process died; it goes on from its last checkpoint")

    def _read(self, trial: Any) -> Trial:
        return trials.read_one(self.search, trial.config["trial"]["number"])

    def _folder(self, number: int) -> str:
        return trials.folder(self.search, number)

    def _end(self, trial: Trial, state: str, reason: str) -> None:
        seconds = trial.seconds + time.time() - self.standing.began.get(trial.number, time.time())
        self._note(trial.model_copy(update={"state": state, "reason": reason, "seconds": seconds}))

    def _note(self, trial: Trial, write: bool = True) -> None:
        if write:
            trials.write(self.search, trial)
        result = trials.result(self.search, trial, self.standing.metric)
        self.standing.results[trial.number] = result
        self.standing.events.append(result)


class Stopper(tune.Stopper):
    """Ends the search when it is asked to."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.asked


def _reason(trial: Any) -> str:
    """Why a trial's process failed, in a line."""
    path = trial.pickled_error_file or trial.error_file
    if not path:
        return "its process died"
    with open(path, "rb") as file:
        error = cloudpickle.load(file) if path == trial.pickled_error_file else file.read().decode()
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out of memory: Ray ended its process"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process was killed, or its node lost, more often than `compute.max_failures`"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
