"""All ranks of a group get the checkpoint that rank 0 reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.helpers import ranks
from txclf.artifacts import checkpoints
from txclf.core import storage
from txclf.core.errors import StorageError
from txclf.training import shared_checkpoint

RANKS = 3


def state() -> dict[str, Any]:
    """Return a state with the kinds of values that a checkpoint has."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 17, generator=draw)
    return {
        "step": 5,
        "model": {"a.weight": weight, "b": weight.to(torch.bfloat16), "empty": torch.empty(0), "ids": torch.arange(3)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(5.0), "exp_avg": weight.t()}},
            "param_groups": [{"betas": (0.9, 0.95)}],
        },
        "scaler": {},
        "history": [{"valid_loss": 0.5}],
        "average": None,
    }


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    return bool(found == expected)


def receive(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}-group", rank=rank, world_size=RANKS)
    if rank:  # only rank 0 may read
        storage.read_bytes = storage.list_folder = None  # type: ignore[assignment]
    found = shared_checkpoint.last_intact(folder, RANKS)
    assert found.checkpoint
    assert found.checkpoint.step == 5
    assert same(found.state, state())
    none = shared_checkpoint.last_intact(f"{folder}-none", RANKS)
    assert (none.checkpoint, none.state, none.damaged) == (None, None, [])
    with pytest.raises(StorageError, match="all checkpoints are damaged"):
        shared_checkpoint.last_intact(f"{folder}-damaged", RANKS)
    ranks.leave()


def test_last_intact_rank_zero_reads_for_all_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints.save(str(folder), 5, {"valid_loss": 0.5}, state())
    damaged = f"{folder}-damaged"
    checkpoints.save(damaged, 5, {}, state())
    (saved,) = checkpoints.committed(damaged)
    Path(saved.path, saved.state).write_bytes(b"x")
    ranks.spawn(receive, (str(folder),), RANKS)


def test_last_intact_in_one_process_reads(tmp_path: Path) -> None:
    checkpoints.save(str(tmp_path), 5, {}, state())
    assert same(shared_checkpoint.last_intact(str(tmp_path), 1).state, state())
