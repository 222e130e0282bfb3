"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.files import make_rows, write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with labelled files and rows to predict."""
    folder = tmp_path_factory.mktemp("work")
    rows = [(f"{text} {'good' if label == 'pos' else 'bad'}", label) for text, label in make_rows(400)]
    write_csv(folder / "train.csv", rows[:300])
    write_csv(folder / "test.csv", rows[300:])
    write_csv(folder / "new.csv", [(text,) for text, _ in make_rows(20, seed=5)], header=["text"])
    return folder
