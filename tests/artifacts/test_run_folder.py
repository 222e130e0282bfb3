"""The kind of a folder and the state of a run, from their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.runs import lines, trained
from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: str) -> RunConfig:
    """Return a finished run."""
    return trained(tmp_path_factory.mktemp("runs"), data, "name=mine")[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["run.yaml", "prepared.json"], "run"),
        (["run.yaml"], "search"),
        (["model.json"], "bundle"),
        (["manifest.json"], "prepared"),
        (["notes.txt"], None),
        ([], None),
    ],
)
def test_kind_follows_from_the_files(tmp_path: Path, names: list[str], expected: str | None) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    assert run_folder.kind(str(tmp_path)) == expected


def test_kind_of_a_file_or_of_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run_folder.kind(str(tmp_path / "file")) is None
    assert run_folder.kind(str(tmp_path / "none")) is None


def test_read_run_finished_has_summary_log_and_manifest(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    assert state.summary is not None
    assert state.run == run
    assert state.step == state.summary["steps"] == lines(run)[-1]["step"]
    assert state.epochs == 2.0
    assert len(state.validations) == 2
    assert state.best == min(state.validations, key=lambda line: line["valid_calibrated_loss"])
    assert state.manifest is not None
    assert state.manifest.labels == ["neg", "pos"]
    assert state.attempts == 1


def test_read_run_copied_finds_the_prepared_data_next_to_it(run: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(run.storage, tmp_path / "copy")
    folder = tmp_path / "copy" / "mine"
    for name in ("prepared.json", "summary.json"):
        content = json.loads((folder / name).read_text())
        key = "folder" if name == "prepared.json" else "prepared"
        (folder / name).write_text(json.dumps({**content, key: "/nowhere"}))
    assert run_folder.read_run(str(folder)).prepared == f"{tmp_path}/copy/prepared/{Path(prepared_of(run)).name}"


def test_read_run_without_log_summary_and_data_is_at_step_zero(run: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(run.run_folder, folder)
    for name in ("summary.json", "metrics.jsonl", "attempts.jsonl"):
        (folder / name).unlink()
    (folder / "prepared.json").write_text(json.dumps({"folder": "/nowhere", "fingerprint": "none"}))
    state = run_folder.read_run(str(folder))
    assert (state.summary, state.prepared, state.manifest, state.best) == (None, None, None, None)
    assert (state.step, state.epochs, state.attempts) == (0, 0.0, 0)


def prepared_of(run: RunConfig) -> str:
    """Return the prepared folder that the run recorded."""
    return str(json.loads(Path(run.run_folder, "summary.json").read_text())["prepared"])
