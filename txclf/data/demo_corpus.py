"""The demo corpus: which package of Python's standard library does a function come from?

A text is the source of one function or method, its label the top-level package, its file where it stands. Nothing is
downloaded: the running Python's own library is read, so another Python version gives a slightly different corpus. A
file belongs to one split only: a model is measured on functions of files that it never saw.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from txclf.core import storage
from txclf.core.errors import DataError

PACKAGES = (
    "asyncio",
    "ctypes",
    "email",
    "encodings",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
)
"""In Python 3.11 to 3.14, each of at least three files with functions."""
SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}
MOST_ROWS = 700
"""Of a package; which of its functions stay is drawn by a hash of their text."""
FEWEST_LINES = 3
FEWEST_PACKAGES = 4


class Function(NamedTuple):
    """A row of the corpus."""

    text: str
    label: str
    file: str
    """Relative to the library, as `asyncio/base_events.py`."""


def write_corpus(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Writes `train.jsonl`, `valid.jsonl` and `test.jsonl` (keys `text`, `label`, `file`); their paths by split.

    The same Python gives the same bytes. Raises `DataError` when fewer than four of the packages are there as source,
    as on a trimmed Python, and `StorageError` when the folder cannot be written.
    """
    library = Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[Function]] = {split: [] for split in SHARES}
    seen: set[str] = set()
    packages = 0
    for package in PACKAGES:
        functions = []
        for found in _functions(library, package):
            if found.text not in seen:
                seen.add(found.text)
                functions.append(found)
        functions = _cap(functions)
        split_of = split_files([found.file for found in functions])
        packages += bool(split_of)
        for found in functions if split_of else []:
            splits[split_of[found.file]].append(found)
    if packages < FEWEST_PACKAGES:
        raise DataError(
            f"`{library}`: {packages} of the packages {', '.join(PACKAGES)} are there; the demo needs {FEWEST_PACKAGES}"
        )
    paths = {split: storage.join(storage.absolute(folder), f"{split}.jsonl") for split in SHARES}
    for split, functions in splits.items():
        content = "".join(json.dumps(found._asdict(), ensure_ascii=False) + "\n" for found in functions).encode()
        # A file that is touched would be prepared anew.
        if not storage.exists(paths[split]) or storage.read_bytes(paths[split]) != content:
            storage.write_bytes(paths[split], content)
    return paths


def split_files(files: Sequence[str]) -> dict[str, str]:
    """The split of each file, where `files` names a file once per row; nothing for fewer files than splits.

    Largest first (a hash of the name decides between equals), each file goes where most rows are wanting, so that the
    shares come out as well as whole files allow; the last files fill the splits that are still empty.
    """
    sizes = Counter(files)
    if len(sizes) < len(SHARES):
        return {}
    wanting = {split: share * len(files) for split, share in SHARES.items()}
    chosen: dict[str, str] = {}
    for file in sorted(sizes, key=lambda file: (-sizes[file], _hash(file))):
        empty = [split for split in SHARES if split not in chosen.values()]
        left = len(sizes) - len(chosen)
        split = max(empty if len(empty) == left else SHARES, key=lambda split: wanting[split])
        wanting[split] -= sizes[file]
        chosen[file] = split
    return chosen


def _cap(functions: list[Function]) -> list[Function]:
    kept = set(sorted(functions, key=lambda found: _hash(found.text))[:MOST_ROWS])
    return [found for found in functions if found in kept]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _functions(library: Path, package: str) -> Iterator[Function]:
    for path in sorted((library / package).rglob("*.py")):
        file = path.relative_to(library)
        if {"test", "tests"}.isdisjoint(file.parts):
            for text in _sources(path):
                yield Function(text, package, file.as_posix())


def _sources(path: Path) -> list[str]:
    """Dedented sources of a file's functions, in its order; none where this Python cannot parse it."""
    try:
        with tokenize.open(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on escapes such as "\d"
            source = stream.read()
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError):
        return []
    lines = source.split("\n")
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    texts = []
    for node in sorted(nodes, key=lambda node: node.lineno):
        assert node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 >= FEWEST_LINES:
            indent = " " * node.col_offset
            texts.append("\n".join(line.removeprefix(indent) for line in lines[node.lineno - 1 : node.end_lineno]))
    return texts
