"""Checkpoints: saving, loading, damage, ranking and pruning."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
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


def state_file(folder: Path, step: int) -> Path:
    (path,) = (folder / f"step-{step:08d}").glob("state*.pt")
    return path


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


@pytest.mark.parametrize("has_state", [False, True])
def test_committed_checkpoint_without_mark_is_ignored(tmp_path: Path, has_state: bool) -> None:
    save(tmp_path, 5)
    save(tmp_path, 6)
    (tmp_path / "step-00000006" / checkpoints.MARK).unlink()
    if not has_state:
        state_file(tmp_path, 6).unlink()
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
    assert len(os.listdir(checkpoint.path)) == 2


def test_load_state_of_a_mark_without_file_name(tmp_path: Path) -> None:
    save(tmp_path, 5)
    state_file(tmp_path, 5).rename(tmp_path / "step-00000005" / "state.pt")
    mark_path = tmp_path / "step-00000005" / checkpoints.MARK
    mark = json.loads(mark_path.read_text())
    del mark["state"]
    mark_path.write_text(json.dumps(mark))
    assert torch.equal(loaded_weight(tmp_path), state_of(5)["model"]["weight"])
    save(tmp_path, 5)
    assert not (tmp_path / "step-00000005" / "state.pt").exists()
    assert torch.equal(loaded_weight(tmp_path), state_of(5)["model"]["weight"])


def loaded_weight(folder: Path) -> torch.Tensor:
    (checkpoint,) = checkpoints.committed(str(folder))
    weight = checkpoints.load(checkpoint)["model"]["weight"]
    assert isinstance(weight, torch.Tensor)
    return weight


SAVE_WITHOUT_MARK = """
import sys, time
from txclf.artifacts import checkpoints
from txclf.core import storage
storage.write_json = lambda path, value: (print("state written", flush=True), time.sleep(60))
checkpoints.save(sys.argv[1], 5, {}, {"step": 5, "attempt": "earlier"})
"""


def test_save_of_an_earlier_attempt_leaves_the_committed_state(tmp_path: Path) -> None:
    checkpoints.save(str(tmp_path), 5, {}, {"step": 5, "attempt": "current"})
    words = [sys.executable, "-c", SAVE_WITHOUT_MARK, str(tmp_path)]
    with subprocess.Popen(words, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "state written\n"
        process.kill()
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    assert len(os.listdir(checkpoint.path)) == 3
    assert checkpoints.load(checkpoint)["attempt"] == "current"


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
    path = state_file(tmp_path, 5)
    path.write_bytes(damage(path.read_bytes(), way))
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    with pytest.raises(
        StorageError,
        match=r"step-00000005/state-\w+\.pt`: damaged: .*\. Remove its folder to use the checkpoint before",
    ):
        checkpoints.load(checkpoint)


def test_load_missing_state_or_damaged_mark_raises(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    state_file(tmp_path, 5).unlink()
    with pytest.raises(StorageError, match=r"state-\w+\.pt`: cannot be read"):
        checkpoints.load(checkpoint)
    (tmp_path / "step-00000005" / checkpoints.MARK).write_text("{")
    with pytest.raises(StorageError, match=r"checkpoint\.json`: not valid JSON"):
        checkpoints.committed(str(tmp_path))


# -------------------------------------------------------------------------------------------------------- last intact


def break_state(folder: Path) -> None:
    state_file(folder, 6).write_bytes(damage(state_file(folder, 6).read_bytes(), "flipped"))


def make_state_a_folder(folder: Path) -> None:
    path = state_file(folder, 6)
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "state changed": break_state,
    "state missing": lambda folder: state_file(folder, 6).unlink(),
    "state unreadable": make_state_a_folder,
    "mark no JSON": lambda folder: (folder / "step-00000006" / checkpoints.MARK).write_text("{"),
    "mark of something else": lambda folder: (folder / "step-00000006" / checkpoints.MARK).write_text("[1]"),
}


@pytest.mark.parametrize("load_state", [False, True])
@pytest.mark.parametrize("way", DAMAGES)
def test_last_intact_skips_a_damaged_checkpoint(tmp_path: Path, way: str, load_state: bool) -> None:
    for step in (4, 5, 6):
        save(tmp_path, step)
    assert checkpoints.last_intact(str(tmp_path)).damaged == []
    DAMAGES[way](tmp_path)
    found = checkpoints.last_intact(str(tmp_path), load_state)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 5
    assert (found.state or {}).get("step") == (5 if load_state else None)
    (note,) = found.notes()
    assert "step-00000006" in note
    assert note.endswith(". The run resumes from the last intact checkpoint, step 5.")
    assert "Remove" not in note


def test_last_intact_without_checkpoints_is_none(tmp_path: Path) -> None:
    assert checkpoints.last_intact(str(tmp_path / "none"), load_state=True) == (None, None, [])


def test_last_intact_all_damaged_raises(tmp_path: Path) -> None:
    for step in (5, 6):
        save(tmp_path, step)
        state_file(tmp_path, step).unlink()
    with pytest.raises(StorageError, match=r"all checkpoints are damaged \(.*00000006.*; .*00000005.*\)\. Restore"):
        checkpoints.last_intact(str(tmp_path))


def test_remove_after_keeps_the_step_and_those_before(tmp_path: Path) -> None:
    for step in (4, 5, 6, 7):
        save(tmp_path, step)
    (tmp_path / "step-00000006" / checkpoints.MARK).write_text("{")
    checkpoints.remove_after(str(tmp_path), 5)
    assert steps(tmp_path) == [4, 5]


def test_last_intact_does_not_import_torch(tmp_path: Path) -> None:
    save(tmp_path, 5)
    program = (
        "import sys; from txclf.artifacts import checkpoints; found = checkpoints.last_intact(sys.argv[1]); "
        "print(found.checkpoint.step); assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "5\n"


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


@pytest.mark.parametrize(
    "mark",
    [
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        '{"step": "5", "metrics": {}, "sha256": ""}',
        '{"step": 5, "metrics": [], "sha256": ""}',
        '{"step": 5, "metrics": {"valid_loss": "x"}, "sha256": ""}',
        '{"step": 5, "metrics": {}, "sha256": 7}',
        '{"step": 5, "metrics": {}, "sha256": "", "state": "../../other.pt"}',
    ],
)
def test_committed_damaged_mark_raises(tmp_path: Path, mark: str) -> None:
    save(tmp_path, 5)
    (tmp_path / "step-00000005" / checkpoints.MARK).write_text(mark)
    with pytest.raises(StorageError, match=r"checkpoint\.json`: (damaged|not valid JSON)"):
        checkpoints.committed(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04", b"cos\nsystem\n(S'true'\ntR."])
def test_load_state_that_torch_cannot_read_raises(tmp_path: Path, content: bytes) -> None:
    """The file fits its checksum; the last one is a pickle that would run a command."""
    save(tmp_path, 5)
    folder = tmp_path / "step-00000005"
    mark = json.loads((folder / checkpoints.MARK).read_text())
    (folder / mark["state"]).write_bytes(content)
    mark["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / checkpoints.MARK).write_text(json.dumps(mark))
    (checkpoint,) = checkpoints.committed(str(tmp_path))
    with pytest.raises(StorageError, match="damaged: not the state of a checkpoint"):
        checkpoints.load(checkpoint)
