"""A trial reports why it failed, and the stop signal is raised once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from txclf.artifacts import trials
from txclf.artifacts.trials import Trial
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.tuning.callbacks import TrialError
from txclf.tuning.runner import Preparation
from txclf.tuning.trainable import Flag, Training


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the threads and the visible GPUs of this process after the test."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def training(folder: Path) -> tuple[Training, RunConfig]:
    run = run_config.parse({"storage": str(folder), "tune": {"space": {"seed": {"choice": [1, 2]}}}})
    return Training(run, run, 0, Preparation(str(folder / "none")), None), run


def test_flag_after_set_is_set() -> None:
    flag = Flag()
    assert not flag.is_set()
    flag.set()
    assert flag.is_set()


def test_training_reason_of_a_user_error_is_its_message(tmp_path: Path) -> None:
    made, run = training(tmp_path)
    assert made._reason(ConfigError("`seed`: bad")) == "`seed`: bad"
    assert not Path(run.run_folder, "error.txt").exists()


def test_training_reason_of_an_unexpected_error_writes_its_traceback(tmp_path: Path) -> None:
    made, run = training(tmp_path)
    try:
        raise ValueError("first line\nsecond line")
    except ValueError as error:
        reason = made._reason(error)
    assert reason == "ValueError: first line"
    content = Path(run.run_folder, "error.txt").read_text()
    assert "Traceback" in content
    assert "second line" in content


def test_training_without_its_data_has_failed(tmp_path: Path) -> None:
    made, run = training(tmp_path)
    trials.write(run.run_folder, Trial(number=0, settings={}))
    made.run()
    result = made.results.get()
    assert isinstance(result, dict)
    assert "none" in result["failed"]


def test_training_with_an_unexpected_error_ends_its_process(tmp_path: Path) -> None:
    made, run = training(tmp_path)
    trials.write(run.run_folder, Trial(number=0, settings={}))
    made.prepared = None  # no pair, which nothing foresees
    made.run()
    result = made.results.get()
    assert isinstance(result, TrialError)
    assert str(result).startswith("TypeError: ")
    assert "Traceback" in Path(run.run_folder, "error.txt").read_text()
