"""A trial as Ray Tune runs it: an ordinary run in a thread, which answers at each validation.

A trial of at most one worker trains in the trial's own process and waits at each validation until Tune says to go on;
one of several workers drives a Ray Train run of its own. Asked to stop, it saves a checkpoint and gives back all it
holds, as any run does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import traceback
from typing import Any

import ray
import torch
from ray import tune

from txclf.artifacts import checkpoints, trials
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import TxclfError
from txclf.training.distributed import ray_trainer
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import train

STOP_S = 120.0
"""Seconds that a trial gets to save a checkpoint and end."""
DONOR = "donor.json"


class Flag:
    """An actor that says whether the search is to stop: Tune cannot ask a trial in the middle of a step."""

    def __init__(self) -> None:
        self.up = False

    def put_up(self) -> None:
        self.up = True

    def is_up(self) -> bool:
        return self.up


class Trainable(tune.Trainable):
    """`setup` gets the search, the prepared folders by what they follow from, a `Flag`, and how many run at once."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], run: RunConfig, prepared: dict[str, str], flag: Any, at_a_time: int
    ) -> None:
        self.search, self.prepared, self.flag, self.at_a_time = run, prepared, flag, at_a_time
        if not run.compute.gpus_per_worker:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # those there are belong to who asked for them
        self._begin(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same process serves the next trial, which saves it the start-up."""
        self.cleanup()
        self._begin(new_config["trial"])
        return True

    def _begin(self, trial: dict[str, Any]) -> None:
        self.trial, self.last = trial, dict[str, Any]()
        run = trials.run_of(self.search, trial["number"], trial["settings"])
        prepared = self.prepared[trials.preparation(run)]
        if run.compute.max_workers <= 1:
            run = run_config.with_overrides(run, {"compute.workers": 0})
        self.training = Training(self.search, run, trial["number"], prepared, self.flag, self.at_a_time)

    def step(self) -> dict[str, Any]:
        """The next validation; with `done`, the end, and why when it failed."""
        if self.training.ident is None:
            if ray.get(self.flag.is_up.remote()):
                return {"done": True}
            self.training.start()
        else:
            self.training.turn.release()
        result = self.training.results.get()
        self.last = {**self.last, "done": True} if result is None else result
        return {**self.last, "takeover": self.trial.get("takeover", {}).get("id")}

    def cleanup(self) -> None:
        """Ends the training, at its next step."""
        self.training.stopping = True
        self.training.turn.release()
        if self.training.ident is not None:
            self.training.join(STOP_S)
            if self.training.is_alive():
                ray_trainer.release(self.training.run_config.run_folder)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The last checkpoint of the run, for another trial to go on from."""
        saved = checkpoints.committed(storage.join(self.training.run_config.run_folder, "checkpoints"))[-1]
        content = {"number": self.trial["number"], "step": saved.step, "metrics": saved.metrics}
        storage.write_json(storage.join(checkpoint_dir, DONOR), content)
        torch.save(checkpoints.load(saved), os.path.join(checkpoint_dir, checkpoints.STATE))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Takes over the checkpoint of another trial, once; its own is in its run folder already."""
        with open(os.path.join(checkpoint, DONOR)) as file:
            donor = json.load(file)
        number, run = self.trial["number"], self.training.run_config
        taken = [change["id"] for change in trials.read_one(self.search.run_folder, number).changes]
        if donor["number"] == number or self.trial["takeover"]["id"] in taken:
            return
        folder = storage.join(run.run_folder, "checkpoints")
        for saved in checkpoints.committed(folder):
            if saved.step > donor["step"]:
                storage.remove_folder(saved.path)
        state = torch.load(os.path.join(checkpoint, checkpoints.STATE), map_location="cpu", weights_only=True)
        checkpoints.save(folder, donor["step"], donor["metrics"], state)
        storage.write_bytes(storage.join(run.run_folder, "run.yaml"), run_config.dump(run).encode())


class Training(threading.Thread):
    """The run of one trial. Each validation is a result; None, or a result with `failed`, is the end."""

    def __init__(
        self, search: RunConfig, run: RunConfig, number: int, prepared: str, flag: Any, at_a_time: int
    ) -> None:
        super().__init__(daemon=True)
        self.search, self.run_config, self.number, self.prepared = search.run_folder, run, number, prepared
        self.metric, self.flag, self.at_a_time = trials.metric(search), flag, at_a_time
        self.results: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.turn = threading.Semaphore(0)
        """Released when Tune wants the next validation, or the end."""
        self.stopping = False
        self.asked: Any = None
        self.seen = self.told_step = 0

    def run(self) -> None:
        result: dict[str, Any] | None = None
        try:
            torch.set_num_threads(max(1, int(self.run_config.compute.cpus_per_worker)))
            self.told_step = trials.read_one(self.search, self.number).judged
            saved = checkpoints.committed(storage.join(self.run_config.run_folder, "checkpoints"))
            self._tell(saved[-1].step if saved else 0)  # what was not judged before a resume
            train(self.run_config, self.prepared, self._report, share=self.at_a_time)
        except Interrupted:
            pass
        except BaseException as error:
            worst = float("inf") if self.metric == "valid_loss" else float("-inf")
            result = {"epoch": 0.0, self.metric: worst, "failed": self._reason(error), "done": True}
        finally:
            self.results.put(result)

    def _report(self, progress: Progress) -> bool:
        if progress.validations != self.seen:
            self.seen = progress.validations
            self._tell()
        if self.asked is None:
            self.asked = self.flag.is_up.remote()
        elif ray.wait([self.asked], timeout=0)[0]:
            self.stopping |= bool(ray.get(self.asked))
            self.asked = None
        return self.stopping

    def _tell(self, up_to: float = float("inf")) -> None:
        """Gives Tune the validations that it has not had."""
        for entry in trials.validations(self.search, self.number):
            if self.told_step < entry["step"] <= up_to and not self.stopping:
                self.told_step = int(entry["step"])
                self.results.put({**entry, "done": False})
                if not self.run_config.compute.on_ray:
                    self.turn.acquire()  # until Tune wants the next one, or the end

    def _reason(self, error: BaseException) -> str:
        """Why it failed, in a line or two; the traceback of what is not the user's to mend goes to `error.txt`."""
        if isinstance(error, TxclfError):
            return str(error)
        with contextlib.suppress(Exception):  # a full disk may be what the error is about
            content = traceback.format_exc().encode()
            storage.write_bytes(storage.join(self.run_config.run_folder, "error.txt"), content)
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
