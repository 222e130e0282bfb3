"""Demo corpus: rows, splits without shared files, and repeatable bytes."""

from __future__ import annotations

import json
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from txclf.core.errors import DataError
from txclf.data import demo_corpus
from txclf.data.demo_corpus import PACKAGES, SHARES, split_files, write_corpus

Row = dict[str, str]


def read(paths: dict[str, str]) -> dict[str, list[Row]]:
    # not by splitlines(): a text may hold U+2028
    texts = {split: Path(path).read_text("utf-8") for split, path in paths.items()}
    return {split: [json.loads(line) for line in text.split("\n")[:-1]] for split, text in texts.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_corpus(tmp_path_factory.mktemp("demo") / "new")


@pytest.fixture(scope="module")
def corpus(written: dict[str, str]) -> dict[str, list[Row]]:
    return read(written)


def fake_library(root: Path, packages: int, functions: int = 3) -> None:
    for name in PACKAGES[:packages]:
        for file in "abc":
            (root / name).mkdir(parents=True, exist_ok=True)
            text = "".join(f"def {file}{i}():\n    # {name}\n    pass\n" for i in range(functions))
            (root / name / f"{file}.py").write_text(text)


def use_library(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))


def test_write_corpus_writes_three_files(written: dict[str, str], corpus: dict[str, list[Row]]) -> None:
    assert list(written) == ["train", "valid", "test"]
    for split, path in written.items():
        assert Path(path).is_absolute()
        assert Path(path).name == f"{split}.jsonl"
    assert {tuple(row) for rows in corpus.values() for row in rows} == {("text", "label", "file")}
    assert sorted(path.name for path in Path(written["train"]).parent.iterdir()) == sorted(
        f"{split}.jsonl" for split in written
    )


def test_write_corpus_rows_are_functions(corpus: dict[str, list[Row]]) -> None:
    rows = [row for split in corpus.values() for row in split]
    assert len(rows) > 3000
    assert len({row["text"] for row in rows}) == len(rows)
    for row in rows:
        assert row["file"].startswith(row["label"] + "/")
        assert row["text"].startswith(("def ", "async def "))
        assert row["text"].count("\n") >= 2
    counts = Counter(row["label"] for row in rows)
    assert len(counts) >= 10
    assert max(counts.values()) <= demo_corpus.MAX_ROWS


def test_write_corpus_splits_share_no_file(corpus: dict[str, list[Row]]) -> None:
    files = {split: {row["file"] for row in rows} for split, rows in corpus.items()}
    assert not files["train"] & files["valid"] | files["train"] & files["test"] | files["valid"] & files["test"]
    labels = {split: {row["label"] for row in rows} for split, rows in corpus.items()}
    assert labels["train"] == labels["valid"] == labels["test"]
    total = sum(map(len, corpus.values()))
    for split, rows in corpus.items():
        assert len(rows) / total == pytest.approx(SHARES[split], abs=0.05)


def test_write_corpus_twice_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(tmp_path / "lib", 4)
    use_library(monkeypatch, tmp_path / "lib")
    first, again = write_corpus(tmp_path / "first"), write_corpus(tmp_path / "again")
    assert [Path(path).read_bytes() for path in first.values()] == [Path(path).read_bytes() for path in again.values()]
    # in any process: a set's order would differ from one to the next
    assert split_files(list("abcdefg")) == {**dict.fromkeys("bcdfg", "train"), "e": "valid", "a": "test"}


def test_write_corpus_leaves_out_tests_and_short_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, name = tmp_path / "lib", PACKAGES[0]
    fake_library(library, 5)
    (library / name / "broken.py").write_text("def f(:\n  1\n  2\n")
    (library / name / "latin.py").write_bytes(
        b"# coding: latin-1\nclass A:\n    async def f():\n        'caf\xe9\\d'\n        1\n"
    )
    (library / name / "short.py").write_text("def f():\n    pass\n")
    (library / name / "twin.py").write_text("def a0():\n    # asyncio\n    pass\n")
    (library / name / "tests").mkdir()
    (library / name / "tests" / "x.py").write_text("def f():\n    1\n    2\n")
    (library / PACKAGES[4] / "c.py").unlink()  # two files are too few for three splits
    use_library(monkeypatch, library)
    rows = [row for split in read(write_corpus(tmp_path / "out")).values() for row in split]
    assert {row["label"] for row in rows} == set(PACKAGES[:4])
    assert {row["file"] for row in rows if row["label"] == name} == {
        f"{name}/{file}.py" for file in ["a", "b", "c", "latin"]
    }
    assert [row["text"] for row in rows if "latin" in row["file"]] == ["async def f():\n    'café\\d'\n    1"]


def test_write_corpus_limits_rows_per_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(tmp_path / "lib", 4, functions=30)
    use_library(monkeypatch, tmp_path / "lib")
    monkeypatch.setattr(demo_corpus, "MAX_ROWS", 50)
    rows = [row for split in read(write_corpus(tmp_path / "out")).values() for row in split]
    assert Counter(row["label"] for row in rows) == dict.fromkeys(PACKAGES[:4], 50)


def test_write_corpus_trimmed_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(tmp_path / "lib", 3)
    use_library(monkeypatch, tmp_path / "lib")
    with pytest.raises(DataError, match=r"lib`: has the source of 3 of the packages asyncio, .*; the demo needs 4"):
        write_corpus(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ({}, []),
        ({"a": 9, "b": 9}, []),
        ({"a": 1, "b": 1, "c": 1}, [1, 1, 1]),
        ({"a": 33, "b": 33, "c": 33}, [33, 33, 33]),
        ({"a": 100, "b": 1, "c": 2}, [100, 2, 1]),
        ({str(i): 1 for i in range(100)}, [70, 15, 15]),
        ({"a": 50, "b": 15, "c": 15, "d": 10, "e": 10}, [75, 15, 10]),
    ],
)
def test_split_files_balances_rows(sizes: dict[str, int], rows: list[int]) -> None:
    chosen = split_files([file for file, count in sizes.items() for _ in range(count)])
    assert [sum(sizes[file] for file, split in chosen.items() if split == name) for name in SHARES if chosen] == rows
