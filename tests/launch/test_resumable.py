"""Commands that are started again resume their run: the named one, or the last unfinished one of its run file."""

from __future__ import annotations

from pathlib import Path

import pytest

from txclf.core.errors import ConfigError
from txclf.launch.resumable import has_run


def begin(folder: Path, *files: str) -> None:
    folder.mkdir(parents=True)
    for name in ("run.yaml", *files):
        (folder / name).write_text("")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")
    return [str(path), f"storage={tmp_path}/runs"]


def test_has_run_of_a_name_is_whether_it_began(tmp_path: Path, words: list[str]) -> None:
    assert not has_run("train", [*words, "name=mine"])
    begin(tmp_path / "runs/mine", "prepared.json", "summary.json")
    assert has_run("train", ["--resume", *words, "name=mine"])
    assert has_run("distill", ["teacher/model", *words, "name=mine"])
    assert not has_run("train", [*words, "name=other"])
    assert not has_run("check", [*words, "name=mine"])
    assert not has_run("train", ["none"])


def test_has_run_without_a_name_is_whether_the_last_one_has_not_ended(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="no run `mine-N` to resume"):
        has_run("train", words)
    begin(tmp_path / "runs/mine-1", "prepared.json")
    begin(tmp_path / "runs/mine-2")
    assert has_run("train", words)
    assert has_run("tune", words)
    assert has_run("train", ["--time=10m", *words])
    (tmp_path / "runs/mine-1/summary.json").write_text("{}")
    assert not has_run("train", words)
    assert has_run("tune", words)
