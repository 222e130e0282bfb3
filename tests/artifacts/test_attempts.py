"""Attempts of a run, in `attempts.jsonl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from txclf.artifacts import attempts
from txclf.core.errors import StorageError


def test_read_without_a_file_returns_no_attempts(tmp_path: Path) -> None:
    assert attempts.read(str(tmp_path)) == []


def test_begin_appends_a_line_per_attempt(tmp_path: Path) -> None:
    first = attempts.begin(str(tmp_path), step=0, workers=2, repeated=0)
    second = attempts.begin(str(tmp_path), step=40, workers=1, repeated=3)
    assert attempts.read(str(tmp_path)) == [first, second]
    assert (second.step, second.workers, second.repeated) == (40, 1, 3)
    assert first.id != second.id
    assert first.time <= second.time
    assert len((tmp_path / attempts.FILE).read_text().splitlines()) == 2


def test_require_current_after_a_later_attempt_raises(tmp_path: Path) -> None:
    first = attempts.begin(str(tmp_path), step=0, workers=1, repeated=0)
    attempts.require_current(str(tmp_path), first)
    second = attempts.begin(str(tmp_path), step=5, workers=1, repeated=0)
    attempts.require_current(str(tmp_path), second)
    with pytest.raises(StorageError, match=r"another process has resumed this run\. Stop one"):
        attempts.require_current(str(tmp_path), first)


@pytest.mark.parametrize("line", ["[]", "{", "{}", "[" * 100_000, '{"id": 1}'])
def test_read_damaged_line_raises(tmp_path: Path, line: str) -> None:
    attempts.begin(str(tmp_path), step=0, workers=2, repeated=0)
    with (tmp_path / attempts.FILE).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StorageError, match=r"attempts\.jsonl`: (damaged|not valid JSON)"):
        attempts.read(str(tmp_path))
