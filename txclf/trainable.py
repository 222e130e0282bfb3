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

import torch
from ray import tune

from txclf import checkpoints, config, storage, trials
from txclf.callbacks import Interrupted, Progress
from txclf.config import RunConfig
from txclf.errors import TxclfError
from txclf.train import train

STOP_S = 120.0
"""Seconds that a trial gets to save a checkpoint and end."""
DONOR = "donor.json"


class Trainable(tune.Trainable):
    """`setup` gets the search's run and the prepared folders by what they follow from."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], run: RunConfig, prepared: dict[str, str]
    ) -> None:
        self.search, self.prepared_folders = run, prepared
        self._begin(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same process serves the next trial, which saves it the start-up."""
        self.cleanup()
        self._begin(new_config["trial"])
        return True

    def _begin(self, trial: dict[str, Any]) -> None:
        self.number, self.settings = trial["number"], trial["settings"]
        self.run = trials.run_of(self.search, self.number, self.settings)
        self.prepared = self.prepared_folders[trials.preparation(self.run)]
        if self.run.compute.most <= 1:
            self.run = config.replaced(self.run, {"compute.workers": 0})
        self.thread: threading.Thread | None = None
        self.results: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.turn = threading.Semaphore(0)
        self.stopping = False
        self.seen, self.told_step, self.last = 0, 0, dict[str, Any]()

    def step(self) -> dict[str, Any]:
        """The next validation; with `done`, the end, and why when it failed."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._train, daemon=True)
            self.thread.start()
        else:
            self.turn.release()
        result = self.results.get()
        self.last = result or {**self.last, "done": True}
        return self.last

    def cleanup(self) -> None:
        """Ends the training, at its next step."""
        self.stopping = True
        self.turn.release()
        if self.thread:
            self.thread.join(STOP_S)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The last checkpoint of the run, for another trial to go on from."""
        saved = checkpoints.committed(storage.join(self.run.run_folder, "checkpoints"))[-1]
        content = {"number": self.number, "step": saved.step, "metrics": saved.metrics}
        storage.write_json(storage.join(checkpoint_dir, DONOR), content)
        torch.save(checkpoints.load(saved), os.path.join(checkpoint_dir, checkpoints.STATE))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Takes over the checkpoint of another trial; its own is in its run folder already."""
        with open(os.path.join(checkpoint, DONOR)) as file:
            donor = json.load(file)
        if donor["number"] == self.number:
            return
        folder = storage.join(self.run.run_folder, "checkpoints")
        for saved in checkpoints.committed(folder):
            if saved.step > donor["step"]:
                storage.remove_folder(saved.path)
        state = torch.load(os.path.join(checkpoint, checkpoints.STATE), map_location="cpu", weights_only=True)
        checkpoints.save(folder, donor["step"], donor["metrics"], state)
        storage.write_bytes(storage.join(self.run.run_folder, "run.yaml"), config.dump(self.run).encode())

    def _train(self) -> None:
        torch.set_num_threads(max(1, int(self.run.compute.cpus_per_worker)))
        saved = checkpoints.committed(storage.join(self.run.run_folder, "checkpoints"))
        self.told_step = saved[-1].step if saved else 0
        try:
            train(self.run, self.prepared, self._report)
            self.results.put(None)
        except Interrupted:
            self.results.put(None)
        except Exception as error:
            known = isinstance(error, TxclfError)
            reason = str(error) if known else f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if not known:
                path = storage.join(self.run.run_folder, "error.txt")
                with contextlib.suppress(Exception):  # a full disk may be what the error is about
                    storage.write_bytes(path, traceback.format_exc().encode())
            self.results.put({"epoch": 0.0, trials.metric(self.search): self._worst(), "failed": reason, "done": True})

    def _report(self, progress: Progress) -> bool:
        if progress.validations != self.seen:
            self.seen = progress.validations
            for entry in trials.validations(self.search.run_folder, self.number):
                if entry["step"] > self.told_step:
                    self.told_step = int(entry["step"])
                    self.results.put({**entry, "done": False})
                    if not self.run.compute.on_ray:
                        self.turn.acquire()  # until Tune wants the next one, or the end
        return self.stopping

    def _worst(self) -> float:
        return float("inf") if trials.metric(self.search) == "valid_loss" else float("-inf")
