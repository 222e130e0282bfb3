"""Numbers as names: the next free one, the last one to resume, and one each for simultaneous processes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from txclf.artifacts import run_names
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError


def unnamed(folder: Path) -> RunConfig:
    return run_config.load(None, [f"storage={folder}"])


def begin(folder: Path) -> str:
    """Take a number, as a process of its own does, and write the file that a run begins with."""
    with run_names.named(unnamed(folder), "jobs/trec.yaml", resume=False) as run:
        for name in ("prepared.json", "run.yaml"):
            Path(run.run_folder, name).write_text("{}")
        return run.name


def test_named_without_a_name_takes_the_next_number(tmp_path: Path) -> None:
    assert [begin(tmp_path), begin(tmp_path)] == ["trec-1", "trec-2"]
    (tmp_path / "trec-7").mkdir()
    assert begin(tmp_path) == "trec-8"
    with run_names.named(unnamed(tmp_path), "my run!.yaml", resume=False) as run:
        assert run.name == "my-run--1"


def test_named_with_a_name_keeps_it(tmp_path: Path) -> None:
    run = run_config.load(None, [f"storage={tmp_path}", "name=run"])
    with run_names.named(run, "trec.yaml", resume=False) as kept:
        assert kept is run
    assert os.listdir(tmp_path) == []


def test_named_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    with run_names.named(unnamed(tmp_path), "trec.yaml", resume=False) as run:
        assert os.path.isdir(run.run_folder)
    assert os.listdir(tmp_path) == []


def test_named_to_resume_is_the_last_that_began(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run `trec-N` to resume"):
        run_names.named(unnamed(tmp_path), "trec.yaml", resume=True).__enter__()
    for _ in range(11):
        begin(tmp_path)
    (tmp_path / "trec-12").mkdir()
    with run_names.named(unnamed(tmp_path), "trec.yaml", resume=True) as run:
        assert run.name == "trec-11"
    (tmp_path / "trec-12" / "run.yaml").write_text("{}")
    with run_names.named(unnamed(tmp_path), "trec.yaml", resume=True) as run:
        assert run.name == "trec-11"
    with run_names.named(unnamed(tmp_path), "trec.yaml", resume=True, is_search=True) as run:
        assert run.name == "trec-12"


def test_named_at_the_same_time_takes_different_numbers(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        names = list(pool.map(begin, [tmp_path] * 24))
    assert sorted(names) == sorted(f"trec-{number}" for number in range(1, 25))
