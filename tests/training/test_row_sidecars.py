"""Sidecars of a run: computed once, in parts, here or on Ray."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import txclf
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, tiny
from tests.helpers.teachers import finish, save_teacher, student
from txclf import ConfigError, Interrupted
from txclf.data.batches import TEACHER
from txclf.data.sidecars import RowGroup, Sidecar
from txclf.training import row_sidecars
from txclf.training.job import WorkerConfig
from txclf.training.progress import Progress
from txclf.training.train import train


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a csv file of 200 rows without labels."""
    rows = [[text] for text, _ in make_rows(200, seed=5)]
    return write_csv(tmp_path_factory.mktemp("unlabelled") / "more.csv", rows, header=["text"])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: str) -> str:
    """Return a teacher whose labels are in another order than those of the data."""
    folder = tmp_path_factory.mktemp("teacher")
    return save_teacher(folder / "model", tiny(folder, data), ["pos", "neg"])


def test_ready_computes_the_values_of_each_row_group_once(
    tmp_path: Path, data: str, unlabelled: str, teacher: str
) -> None:
    run = student(tmp_path, data, teacher, f"data.unlabelled={unlabelled}", "train.train_on_valid=true")
    config = WorkerConfig(run, txclf.prepare(run))
    begun: list[WorkerConfig] = []
    stages: list[tuple[str, int, int]] = []

    def report(progress: Progress) -> bool:
        stages.append((progress.stage, progress.step, progress.total_steps))
        return False

    ready = row_sidecars.ready(config, begin=begun.append, report=report)
    assert [sidecar.column for sidecar in ready.sidecars] == ["teacher_logits"]
    assert begun == [ready]
    assert stages[-1] == ("preparing", 500, 500)
    assert row_sidecars.missing(ready, ready.sidecars[0]) == []
    stages.clear()
    assert row_sidecars.ready(config, begin=begun.append, report=report) == ready
    assert (len(begun), stages) == (1, [])


def test_ready_of_two_runs_at_once_computes_the_values_once(
    tmp_path: Path, data: str, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = student(tmp_path, data, teacher)
    config = WorkerConfig(run, txclf.prepare(run))
    kind, both, stored = row_sidecars.KINDS[TEACHER], threading.Barrier(2), list[int]()

    def sidecar(config: WorkerConfig) -> Sidecar | None:
        found = kind.of_run(config)
        both.wait()
        return found

    def store(config: WorkerConfig, sidecar: Sidecar, groups: Sequence[RowGroup], show: row_sidecars.Show) -> None:
        stored.append(len(groups))
        kind.store(config, sidecar, groups, show)

    monkeypatch.setitem(row_sidecars.KINDS, TEACHER, kind._replace(of_run=sidecar, store=store))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(row_sidecars.ready, [config, config])
    assert first == second
    assert len(stored) == 1


def test_ready_of_a_run_without_sidecars_returns_it(tmp_path: Path, data: str) -> None:
    config = WorkerConfig(tiny(tmp_path, data), "nowhere")
    assert row_sidecars.ready(config) == config


def test_train_stopped_while_the_teacher_answers_resumes(
    tmp_path: Path, data: str, unlabelled: str, teacher: str
) -> None:
    words = ["name=one", f"data.unlabelled={unlabelled}"]
    run = student(tmp_path / "a", data, teacher, *words)
    rows = WorkerConfig(run, txclf.prepare(run)).manifest().splits["train"].rows
    seen: list[int] = []

    def stop_at_the_end(progress: Progress) -> bool:
        if progress.stage == "preparing":
            assert progress.total_steps == rows
            seen.append(progress.step)
        return progress.stage == "preparing" and progress.step == rows

    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), stop_at_the_end)
    stored = sorted((tmp_path / "a" / "prepared").glob("*/teacher-*/*/*.parquet"))
    assert len(stored) == len(seen) - 1 == 1  # the row groups before the last
    written = stored[0].stat().st_mtime_ns
    resumed = finish(run)
    assert stored[0].stat().st_mtime_ns == written
    whole = finish(student(tmp_path / "b", data, teacher, *words))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_train_resumes_without_the_teacher(tmp_path: Path, data: str, teacher: str) -> None:
    copied = shutil.copytree(teacher, tmp_path / "copied")
    run = student(tmp_path, data, str(copied))
    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), lambda progress: progress.stage == "training" and progress.step >= 5)
    shutil.rmtree(copied)
    assert finish(run)


def test_train_refuses_a_teacher_that_changed(tmp_path: Path, data: str, teacher: str) -> None:
    copied = Path(shutil.copytree(teacher, tmp_path / "copied"))
    run = student(tmp_path, data, str(copied))
    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), lambda progress: progress.stage == "preparing")
    shutil.rmtree(copied)
    save_teacher(copied, run.model_copy(update={"name": "other"}), ["neg", "pos"])
    with pytest.raises(ConfigError, match="began with other `teacher_logits`, whose network changed"):
        train(run, txclf.prepare(run), go_on)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_worker_of_ray_and_this_process_train_the_same_student(
    tmp_path: Path, data: str, unlabelled: str, teacher: str, local_ray: None
) -> None:
    words = [f"data.unlabelled={unlabelled}"]
    here = student(tmp_path / "here", data, teacher, *words)
    there = student(tmp_path / "there", data, teacher, *words, "compute.workers=1")
    one, two = finish(here), finish(there)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)
    assert list((tmp_path / "there" / "prepared").glob("*/teacher-*/unlabelled/*.parquet"))
