"""One trial of Ray Tune: an ordinary run in a thread that reports each validation.

A trial of at most one worker trains in the trial's own process and waits at each validation until Tune continues it. A
trial of several workers drives its own Ray Train run. A stopped trial saves a checkpoint and releases its resources,
like any run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import threading
import traceback
from typing import Any

import ray
import torch
from ray import tune

from txclf.artifacts import checkpoints, trials
from txclf.artifacts.metric_logger import LogReader
from txclf.config import recipes, run_config
from txclf.config.base import direction
from txclf.config.run_config import RunConfig
from txclf.core import devices, storage
from txclf.core.errors import TxclfError
from txclf.training.distributed import ray_trainer
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import train
from txclf.tuning.callbacks import TrialError, flat_config

STOP_S = 120.0
"""Maximum seconds for a stopped trial to save a checkpoint and end."""
DONOR, DONOR_STATE = "donor.json", "state.pt"
"""Files in a checkpoint of Tune: the trial it comes from, and the state of that trial."""


class Flag:
    """An actor that holds the stop signal of a search, because Tune cannot reach a trial in the middle of a step."""

    def __init__(self) -> None:
        self.raised = False

    def set(self) -> None:
        """Ask all trials to stop."""
        self.raised = True

    def is_set(self) -> bool:
        """Return True if the trials are to stop."""
        return self.raised


class Trainable(tune.Trainable):
    """One trial of a search."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], run: RunConfig, prepared: dict[str, Any], flag: Any
    ) -> None:
        """Take the search, the `Preparation` of each `trials.preparation`, and the `Flag` actor."""
        self.search, self.prepared, self.flag = run, prepared, flag
        self._begin(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in the same process, which saves its start-up time."""
        self.cleanup()
        self._begin(new_config["trial"])
        return True

    def _begin(self, trial: dict[str, Any]) -> None:
        self.trial, self.last = trial, dict[str, Any]()
        self.config = flat_config(trial)  # Ray Tune adds it to each result
        run = trials.run_of(self.search, trial["number"], trial["settings"])
        prepared = self.prepared[trials.preparation(run)]
        if run.compute.max_workers <= 1:
            run = run_config.with_overrides(run, {"compute.workers": 0})
        self.training = Training(self.search, run, trial["number"], prepared, self.flag)

    def step(self) -> dict[str, Any]:
        """Return the next validation. `done` marks the end of the trial, `failed` holds the reason of a failure.

        Raises `TrialError` for an unexpected error, and `ClusterError` for a GPU that cannot be used, so that Tune ends
        this process and restarts the trial in another.
        """
        run = self.search
        if self.training.ident is None:
            if ray.get(self.flag.is_set.remote()):
                return {"done": True}
            if run.compute.max_workers <= 1:
                devices.require(run.compute.gpus_per_worker)
            self.training.start()
        else:
            self.training.turn.release()
        result = self.training.results.get()
        if isinstance(result, TrialError):
            raise result
        self.last = {**self.last, "done": True} if result is None else result
        takeover = self.trial.get("takeover", {}).get("id")
        return {**self.last, "takeover": takeover, "run_folder": self.training.run_config.run_folder}

    def cleanup(self) -> None:
        """End the training at its next step."""
        self.training.stopping = True
        self.training.turn.release()
        if self.training.ident is not None:
            self.training.join(STOP_S)
            if self.training.is_alive():
                ray_trainer.release(self.training.run_config.run_folder)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the last checkpoint of the run, from which another trial can continue."""
        folder = storage.join(self.training.run_config.run_folder, "checkpoints")
        saved, state, _ = checkpoints.last_intact(folder, load_state=True)
        assert saved, "a trial is saved after a validation"
        content = {"number": self.trial["number"], "step": saved.step, "metrics": saved.metrics}
        storage.write_json(storage.join(checkpoint_dir, DONOR), content)
        torch.save(state, os.path.join(checkpoint_dir, DONOR_STATE))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take over the checkpoint of another trial, once.

        The trial's own checkpoint is in its run folder already.
        """
        with open(os.path.join(checkpoint, DONOR)) as file:
            donor = json.load(file)
        number, run = self.trial["number"], self.training.run_config
        taken = [change["id"] for change in trials.read_one(self.search.run_folder, number).changes]
        if donor["number"] == number or self.trial["takeover"]["id"] in taken:
            return
        folder = storage.join(run.run_folder, "checkpoints")
        checkpoints.remove_after(folder, donor["step"])
        state = torch.load(os.path.join(checkpoint, DONOR_STATE), map_location="cpu", weights_only=True)
        checkpoints.save(folder, donor["step"], donor["metrics"], state)
        self.training.begins_at = donor["step"]
        path = storage.join(run.run_folder, "run.yaml")
        if storage.exists(path):  # with what the rows and the pretrained model have settled
            run = recipes.as_begun(run, run_config.load(path))
        storage.write_bytes(path, run_config.dump(run).encode())


class Training(threading.Thread):
    """A thread that runs one trial.

    It puts each validation into `results`, then None, a result with `failed`, or a `TrialError` at the end.
    """

    def __init__(self, search: RunConfig, run: RunConfig, number: int, prepared: Any, flag: Any) -> None:
        super().__init__(daemon=True)
        self.search, self.run_config, self.number, self.prepared = search.run_folder, run, number, prepared
        self.metric, self.flag = trials.metric(search), flag
        self.results: queue.Queue[dict[str, Any] | TrialError | None] = queue.Queue()
        self.turn = threading.Semaphore(0)
        """Released when Tune asks for the next validation or for the end."""
        self.log = LogReader(run.run_folder)
        self.stopping = False
        self.asked: Any = None
        self.begins_at = math.inf
        """Step of the checkpoint that was taken over; the validations after it are judged, again if need be."""
        self.seen = self.reported_step = 0

    def run(self) -> None:
        result: dict[str, Any] | TrialError | None = None
        try:
            devices.take(self.run_config.compute.cpus_per_worker, self.run_config.compute.gpus_per_worker)
            self.reported_step = int(min(trials.read_one(self.search, self.number).judged, self.begins_at))
            saved = checkpoints.last_intact(storage.join(self.run_config.run_folder, "checkpoints")).checkpoint
            self._report_validations(saved.step if saved else 0)  # validations that were not judged before a resume
            folder, encoder = self.prepared
            train(self.run_config, folder, self._report, patience_s=STOP_S, is_trial=True, encoder=encoder)
        except Interrupted:
            pass
        except (TxclfError, torch.OutOfMemoryError) as error:  # of the settings: another process would fail alike
            worst = float("inf") if direction(self.metric) == "min" else float("-inf")
            result = {"epoch": 0.0, self.metric: worst, "failed": self._reason(error), "done": True}
        except BaseException as error:
            result = TrialError(self._reason(error))
        finally:
            self.results.put(result)

    def _report(self, progress: Progress) -> bool:
        if progress.validations != self.seen:
            self.seen = progress.validations
            self._report_validations()
        if self.asked is None:
            self.asked = self.flag.is_set.remote()
        elif ray.wait([self.asked], timeout=0)[0]:
            self.stopping |= bool(ray.get(self.asked))
            self.asked = None
        return self.stopping

    def _report_validations(self, up_to: float = float("inf")) -> None:
        """Report the validations to Tune that it has not received."""
        for entry in self.log.read():
            if self.reported_step < entry["step"] <= up_to and not self.stopping:
                self.reported_step = int(entry["step"])
                self.results.put({**entry, "done": False})
                if not self.run_config.compute.on_ray:
                    self.turn.acquire()  # until Tune asks for the next validation or for the end

    def _reason(self, error: BaseException) -> str:
        """Return the reason of a failure, and write the traceback of an unexpected error to `error.txt`."""
        if isinstance(error, TxclfError):
            return str(error)
        with contextlib.suppress(Exception):  # the error may be a full disk
            content = traceback.format_exc().encode()
            storage.write_bytes(storage.join(self.run_config.run_folder, "error.txt"), content)
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
