"""Demo corpus: predict the package of Python's standard library that a function comes from.

A text is the source of one function or method, its label is the top-level package. Nothing is downloaded: the corpus is
read from the library of the running Python, so it differs slightly between Python versions. Each file belongs to one
split, so a model is scored on functions of files that it has never seen.
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
"""Packages with at least three files with functions in Python 3.11 to 3.14."""
SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}
MAX_ROWS = 700
"""Maximum number of functions per package. A hash of the text chooses which ones to keep."""
MIN_LINES = 3
MIN_PACKAGES = 4


class Function(NamedTuple):
    """Row of the corpus."""

    text: str
    label: str
    file: str
    """Path relative to the library, such as `asyncio/base_events.py`."""


def write_corpus(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write `train.jsonl`, `valid.jsonl` and `test.jsonl`, and return their paths by split.

    The rows have the keys `text`, `label` and `file`. The same Python gives the same bytes. Raises `DataError` if
    Python has the source of fewer than four packages, and `StorageError` if the folder cannot be written.
    """
    library = Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[Function]] = {split: [] for split in SHARES}
    seen: set[str] = set()
    packages = 0
    for package in PACKAGES:
        functions = []
        for function in _functions(library, package):
            if function.text not in seen:
                seen.add(function.text)
                functions.append(function)
        functions = _cap(functions)
        split_of = split_files([function.file for function in functions])
        packages += bool(split_of)
        for function in functions if split_of else []:
            splits[split_of[function.file]].append(function)
    if packages < MIN_PACKAGES:
        raise DataError(
            f"`{library}`: has the source of {packages} of the packages {', '.join(PACKAGES)}; the demo needs "
            f"{MIN_PACKAGES}. Use a Python with its full standard library."
        )
    paths = {split: storage.join(storage.absolute(folder), f"{split}.jsonl") for split in SHARES}
    for split, functions in splits.items():
        content = "".join(json.dumps(function._asdict(), ensure_ascii=False) + "\n" for function in functions).encode()
        # Rewriting an unchanged file would change its time, and so the fingerprint of the prepared data.
        if not storage.exists(paths[split]) or storage.read_bytes(paths[split]) != content:
            storage.write_bytes(paths[split], content)
    return paths


def split_files(files: Sequence[str]) -> dict[str, str]:
    """Return the split of each file, or nothing if there are fewer files than splits.

    `files` names a file once per row. Files are assigned in descending size, ties by a hash of the name, each to the
    split that lacks the most rows. The last files fill splits that are still empty.
    """
    sizes = Counter(files)
    if len(sizes) < len(SHARES):
        return {}
    missing_rows = {split: share * len(files) for split, share in SHARES.items()}
    chosen: dict[str, str] = {}
    for file in sorted(sizes, key=lambda file: (-sizes[file], _hash(file))):
        empty = [split for split in SHARES if split not in chosen.values()]
        left = len(sizes) - len(chosen)
        split = max(empty if len(empty) == left else SHARES, key=lambda split: missing_rows[split])
        missing_rows[split] -= sizes[file]
        chosen[file] = split
    return chosen


def _cap(functions: list[Function]) -> list[Function]:
    kept = set(sorted(functions, key=lambda function: _hash(function.text))[:MAX_ROWS])
    return [function for function in functions if function in kept]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _functions(library: Path, package: str) -> Iterator[Function]:
    for path in sorted((library / package).rglob("*.py")):
        file = path.relative_to(library)
        if {"test", "tests"}.isdisjoint(file.parts):
            for text in _sources(path):
                yield Function(text, package, file.as_posix())


def _sources(path: Path) -> list[str]:
    """Return the dedented sources of the functions of a file, in order; none if this Python cannot parse the file."""
    try:
        with tokenize.open(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes such as "\d"
            source = stream.read()
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError):
        return []
    lines = source.split("\n")
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    texts = []
    for node in sorted(nodes, key=lambda node: node.lineno):
        assert node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 >= MIN_LINES:
            indent = " " * node.col_offset
            texts.append("\n".join(line.removeprefix(indent) for line in lines[node.lineno - 1 : node.end_lineno]))
    return texts
