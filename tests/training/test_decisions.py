"""A decision of rank 0 reaches all ranks at the same step, one step after rank 0 made it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import distributed

from tests.helpers import ranks
from tests.helpers.runs import tiny
from txclf.artifacts import checkpoints
from txclf.config.run_config import RunConfig
from txclf.data.prepare import prepare
from txclf.training import callbacks, worker
from txclf.training.decisions import Decision, DecisionBroadcast
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.progress import Interrupted, Progress


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exchange(rank: int, port: int) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    made = iter([Decision.CONTINUE, Decision.SAVE, Decision.SAVE | Decision.STOP])
    # The other ranks would all stop at once; only rank 0 counts.
    decisions = DecisionBroadcast(lambda: next(made) if rank == 0 else Decision.STOP, 3, 30)
    received = []
    for _ in range(3):
        received.append(decisions.receive())
        distributed.barrier()
        decisions.send()
    received += [decisions.receive(), decisions.receive()]
    expected = [Decision.CONTINUE, Decision.CONTINUE, Decision.SAVE, Decision.SAVE | Decision.STOP, Decision.CONTINUE]
    assert received == expected
    ranks.leave()


def test_broadcast_gives_each_rank_the_decision_of_rank_zero_one_step_later() -> None:
    ranks.spawn(exchange, (free_port(),), 3)


def test_broadcast_in_one_process_answers_at_once() -> None:
    decisions = DecisionBroadcast(lambda: Decision.SAVE, 1, 30)
    decisions.send()
    assert decisions.receive() == Decision.SAVE


class Environment(LightningEnvironment):
    """A worker among others, one device each, as Ray Train places them."""

    def __init__(self, rank: int, port: int) -> None:
        super().__init__()
        self.rank, self.port = rank, port

    creates_processes_externally = True

    def world_size(self) -> int:
        return 2

    def global_rank(self) -> int:
        return self.rank

    def local_rank(self) -> int:
        return 0

    def set_world_size(self, size: int) -> None:
        pass

    def set_global_rank(self, rank: int) -> None:
        pass

    @property
    def main_port(self) -> int:
        return self.port


def train_until_asked(rank: int, port: int, run: RunConfig, prepared: str, gap: int) -> None:
    """Train as one of two workers, ask for a stop at step 5, and check that rank 0 saved every `gap` steps at least."""
    torch.set_num_threads(1)
    callbacks.REPORT_INTERVAL_S = 0.0
    strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
    plugins: tuple[Any, ...] = (Environment(rank, port),)
    saved: list[int] = []
    save = checkpoints.save

    def save_and_note(folder: str, step: int, metrics: Mapping[str, float], state: Mapping[str, Any]) -> None:
        saved.append(step)
        save(folder, step, metrics, state)

    checkpoints.save = save_and_note

    def report(progress: Progress) -> bool:
        return progress.step >= 5

    with pytest.raises(Interrupted):
        worker.fit(WorkerConfig(run, prepared), None, report, DistributedContext(rank, 2, strategy, plugins))
    assert saved[-1:] == ([] if rank else [6])
    assert max([after - before for before, after in pairwise([0, *saved])], default=0) <= gap


@pytest.mark.parametrize(
    ("checkpoint_every", "gap"),
    [
        ("1h", 6),
        # Due after each step: decided after one step and saved after the next.
        ("0.001s", 2),
    ],
)
def test_stops_and_timed_checkpoints_of_two_workers_follow_within_one_step(
    tmp_path: Path, data: str, checkpoint_every: str, gap: int
) -> None:
    run = tiny(tmp_path, data, "train.epochs=3", f"train.checkpoint_every={checkpoint_every}")
    ranks.spawn(train_until_asked, (free_port(), run, prepare(run), gap), 2)
