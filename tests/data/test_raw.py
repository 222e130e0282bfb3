"""Parts that all readers of files share."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.data_files import PACK, put
from txclf.core.errors import DataError
from txclf.data.raw import choose, damage, make_batch, read_whole
from txclf.data.sources import Source

SOURCE = Source("/a.csv", "csv")


@pytest.mark.parametrize("ending", PACK)
def test_read_whole_returns_none_for_a_larger_file(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path / f"a.txt{ending}", PACK[ending](b"x" * 1000))
    assert read_whole(path, 1000) == b"x" * 1000
    assert read_whole(path, 999) is None


def test_choose_checks_only_the_columns_that_are_read() -> None:
    assert choose(SOURCE, ["a", "b", "b"], ["a"]) == ["a"]
    assert choose(SOURCE, ["a", "b"], None) == ["a", "b"]
    for names in (["b"], None):
        with pytest.raises(DataError, match="column `b` comes twice"):
            choose(SOURCE, ["a", "b", "b"], names)
    with pytest.raises(DataError, match="no column `c` among `a`"):
        choose(SOURCE, ["a"], ["c"])


def test_make_batch_rows_with_a_problem_have_no_values() -> None:
    batch = make_batch(SOURCE, 5, 2, {"a": [1, 2]}, {1: "bad"})
    assert (batch.rows, batch.files, batch.columns) == ([6, 7], ["/a.csv"] * 2, {"a": [1, None]})


@pytest.mark.parametrize("error", [OSError("gone"), EOFError("short"), pa.ArrowInvalid("odd")])
def test_damage_names_the_last_good_row(error: Exception) -> None:
    with pytest.raises(DataError, match="damaged after row 1,002: "), damage(SOURCE, 1000, [1, 2]):
        raise error
