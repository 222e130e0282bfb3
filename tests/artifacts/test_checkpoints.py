"""Checkpoints: saving, loading, damage, ranking and pruning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from txclf.artifacts import checkpoints
from txclf.artifacts.checkpoints import Checkpoint
from txclf.core import storage
from txclf.core.errors import StorageError


def state_of(step: int) -> dict[str, Any]:
    torch.manual_seed(step)
    return {"step": step, "model": {"weight": torch.randn(30, 20)}, "history": [{"step": 1.0, "valid_loss": 0.5}]}


def save(folder: Path, step: int, **metrics: float) -> None:
    checkpoints.save(str(folder), step, metrics, state_of(step))


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.committed(str(folder))]


def test_load_returns_the_saved_state(tmp_path: Path) -> None:
    state = state_of(12) | {
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "scaler": {},
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    checkpoints.save(str(tmp_path), 12, {"valid_loss": 0.25}, state)
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    assert checkpoint[:3] == (12, {"valid_loss": 0.25}, str(tmp_path / "step-00000012"))
    loaded = checkpoints.load(checkpoint)
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert loaded["half"].dtype == torch.bfloat16
    assert loaded["history"] == state["history"]
    assert loaded["optimizer"]["param_groups"] == [{"lr": 0.1}]


def test_committed_sorts_by_step(tmp_path: Path) -> None:
    for step in (100_000_000, 7, 30, 0):
        save(tmp_path, step)
    assert steps(tmp_path) == [0, 7, 30, 100_000_000]
    assert steps(tmp_path / "none") == []


@pytest.mark.parametrize("written", [[], [checkpoints.STATE]])
def test_committed_checkpoint_without_mark_is_ignored(tmp_path: Path, written: list[str]) -> None:
    save(tmp_path, 5)
    save(tmp_path, 6)
    for name in {checkpoints.STATE, checkpoints.MARK} - set(written):
        (tmp_path / "step-00000006" / name).unlink()
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert steps(tmp_path) == [5]
    save(tmp_path, 6)
    assert steps(tmp_path) == [5, 6]


def test_save_same_step_again_replaces_the_state(tmp_path: Path) -> None:
    save(tmp_path, 5, valid_loss=1.0)
    checkpoints.save(str(tmp_path), 5, {"valid_loss": 2.0}, {"step": 5, "again": True})
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    assert checkpoint.metrics == {"valid_loss": 2.0}
    assert checkpoints.load(checkpoint) == {"step": 5, "again": True}


def test_save_unpicklable_state_leaves_no_mark(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        checkpoints.save(str(tmp_path), 5, {}, {"step": lambda: 5})
    assert steps(tmp_path) == []


def damage(content: bytes, way: str) -> bytes:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"empty": b"", "half": content[: len(content) // 2], "flipped": bytes(flipped), "more": content + b"\0"}[way]


@pytest.mark.parametrize("way", ["empty", "half", "flipped", "more"])
def test_load_damaged_state_raises(tmp_path: Path, way: str) -> None:
    save(tmp_path, 5)
    path = tmp_path / "step-00000005" / checkpoints.STATE
    path.write_bytes(damage(path.read_bytes(), way))
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    with pytest.raises(
        StorageError, match=r"step-00000005/state\.pt`: damaged: .*\. Remove its folder to resume from the previous"
    ):
        checkpoints.load(checkpoint)


def test_load_missing_state_or_damaged_mark_raises(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    (tmp_path / "step-00000005" / checkpoints.STATE).unlink()
    with pytest.raises(StorageError, match=r"state\.pt`: cannot be read"):
        checkpoints.load(checkpoint)
    (tmp_path / "step-00000005" / checkpoints.MARK).write_text("{")
    with pytest.raises(StorageError, match=r"checkpoint\.json`: not valid JSON"):
        checkpoints.committed(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize(
    ("monitor", "values", "expected"),
    [
        ("valid_loss", [3.0, 1.0, 2.0], [20, 30, 10]),
        ("valid_loss", [1.0, 2.0, 1.0, 2.0], [10, 30, 20, 40]),
        ("valid_accuracy", [0.1, 0.9, 0.5], [20, 30, 10]),
        ("valid_f1_macro", [0.5, 0.5, 0.4, 0.5], [10, 20, 40, 30]),
    ],
)
def test_ranked_puts_the_best_and_the_earlier_first(monitor: str, values: list[float], expected: list[int]) -> None:
    found = [Checkpoint(10 * number, {monitor: value}, "p", "h") for number, value in enumerate(values, start=1)]
    found.append(Checkpoint(99, {}, "p", "h"))  # saved between two validations
    assert [checkpoint.step for checkpoint in checkpoints.ranked(found[::-1], monitor)] == expected
    entries = [checkpoint.metrics for checkpoint in found[:-1]]
    assert 10 * (checkpoints.best(entries, monitor) + 1) == expected[0]


@pytest.mark.parametrize(
    ("monitor", "value", "other", "expected"),
    [
        ("valid_loss", 1.0, 2.0, True),
        ("valid_loss", 2.0, 2.0, False),
        ("valid_accuracy", 1.0, 2.0, False),
        ("valid_f1_macro", 2.0, 1.0, True),
        ("valid_f1_macro", 2.0, 2.0, False),
    ],
)
def test_better_is_lower_for_a_loss_only(monitor: str, value: float, other: float, expected: bool) -> None:
    assert checkpoints.better(monitor, value, other) is expected


# ------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize(
    ("keep", "losses", "kept"),
    [
        (1, [3.0, 1.0, 2.0, 4.0], [2, 4]),
        (2, [3.0, 1.0, 2.0, 4.0], [2, 3, 4]),
        (2, [4.0, 3.0, 2.0, 1.0], [3, 4]),
        (2, [1.0, 1.0, 1.0, 1.0], [1, 2, 4]),
        (9, [3.0, 1.0, 2.0, 4.0], [1, 2, 3, 4]),
    ],
)
def test_prune_keeps_the_best_and_the_last(tmp_path: Path, keep: int, losses: list[float], kept: list[int]) -> None:
    for step, loss in enumerate(losses, start=1):
        save(tmp_path, step, valid_loss=loss)
    checkpoints.prune(str(tmp_path), "valid_loss", keep)
    assert steps(tmp_path) == kept
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:08d}" for step in kept]


def test_prune_unvalidated_checkpoint_is_kept_while_it_is_the_last(tmp_path: Path) -> None:
    save(tmp_path, 1, valid_loss=1.0)
    save(tmp_path, 2)
    checkpoints.prune(str(tmp_path), "valid_loss", 1)
    assert steps(tmp_path) == [1, 2]
    save(tmp_path, 3, valid_loss=2.0)
    checkpoints.prune(str(tmp_path), "valid_loss", 1)
    assert steps(tmp_path) == [1, 3]


def test_prune_leaves_loadable_checkpoints_and_foreign_files(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step, valid_accuracy=step % 3)
    storage.write_bytes(tmp_path / "mine" / "file", b"")
    checkpoints.prune(str(tmp_path), "valid_accuracy", 1)
    assert steps(tmp_path) == [2, 4]
    assert storage.exists(tmp_path / "mine" / "file")
    for checkpoint in checkpoints.committed(str(tmp_path)):
        assert torch.equal(
            checkpoints.load(checkpoint)["model"]["weight"], state_of(checkpoint.step)["model"]["weight"]
        )
