"""Data files behind paths, globs, folders and URIs, each with its format.

A folder holds data files at any depth, or text files as `<label>/<file>.txt`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from txclf.core import storage
from txclf.core.errors import DataError

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "text"}
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_KNOWN = f"{', '.join(ending for ending in _FORMATS if ending != '.txt')}, each also with {' or '.join(_CODECS)}"


@dataclass(frozen=True, slots=True)
class Source:
    """One data file, or the folder with the text files of one label."""

    path: str
    """Absolute path or URI."""
    format: str
    """`csv`, `tsv`, `jsonl`, `parquet` or `text`."""
    label: str | None = None
    """Name of the folder for `text`; None for other formats."""


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Return the sources of files, globs, folders and URIs: in the given order, the sources of one path sorted.

    Globs have `*`, `?` (not in a URI), `[…]` and `**`. A glob takes the files that it matches or, if it matches none,
    the folders. A folder holds data files at any depth, or text files as `<label>/<file>.txt`. Names that start with
    `.` or `_` are skipped.

    Raises `DataError` if nothing matches, a file extension is unknown, a folder has neither layout or both, or a file
    comes twice. Raises `StorageError` for a URI with an unknown scheme.
    """
    sources: dict[str, Source] = {}
    for path in paths:
        for source in sorted(_expand(path), key=lambda source: source.path):
            if source.path in sources:
                raise DataError(f"`{source.path}`: given twice, the second time by `{path}`. Name each file once.")
            sources[source.path] = source
    return list(sources.values())


def _expand(path: str) -> list[Source]:
    target = storage.absolute(unquote(path.removeprefix("file://")) if path.startswith("file://") else path)
    remote = "://" in target
    text, mark, query = target.rstrip("/").partition("?") if remote else (target, "", "")
    wild = re.search(r"[*\[]" if remote else r"[*?\[]", text)
    if not remote and os.path.lexists(target):
        wild = None
    cut = text.rindex("/", 0, wild.start()) if wild else len(text)
    base = (text[:cut] or "/") + mark + query
    filesystem, inner = storage.resolve(base)
    name = partial(public_name, base, inner)
    with fault(path, "cannot be reached"):
        matches = _glob(filesystem, inner, text[cut + 1 :].split("/")) if wild else [filesystem.get_file_info(inner)]
        unique = {info.path: info for info in matches}.values()
        if files := [info.path for info in unique if info.type == pafs.FileType.File]:
            return [Source(name(file), _format(file)) for file in files]
        if folders := [info.path for info in unique if info.type == pafs.FileType.Directory]:
            return [source for folder in folders for source in _folder(filesystem, folder, name)]
    where = "" if remote or os.path.isabs(path) else f" (working directory: `{os.getcwd()}`)"
    problem = "no file matches" if wild else "no such file or folder"
    raise DataError(f"`{path}`: {problem}{where}. Check the path.")


def stamp(source: Source) -> list[tuple[str, int, int]]:
    """Return path, bytes and modification time (nanoseconds) of each file of a source, to detect changes."""
    filesystem, inner = storage.resolve(source.path)
    where = pafs.FileSelector(inner) if source.format == "text" else [inner]
    infos = sorted(filesystem.get_file_info(where), key=lambda info: str(info.path))
    return [(info.path, info.size or 0, info.mtime_ns or 0) for info in infos]


def list_files(filesystem: pafs.FileSystem, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
    """Return the sorted entries of a folder; none if it does not exist."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=recursive))
    return sorted(infos, key=lambda info: str(info.path))


def _glob(filesystem: pafs.FileSystem, folder: str, parts: list[str]) -> Iterator[pafs.FileInfo]:
    """Yield the matches below a folder, level by level. Folders that the pattern does not reach are not listed."""
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _glob(filesystem, folder, rest or ["*"])
    for info in list_files(filesystem, folder):
        is_folder = info.type == pafs.FileType.Directory
        if info.base_name[0] in "._" and info.base_name[0] != head[:1]:
            continue
        if head == "**" and is_folder:
            yield from _glob(filesystem, info.path, parts)
        elif fnmatchcase(info.base_name, head) and (is_folder or not rest):
            yield from _glob(filesystem, info.path, rest) if rest else [info]


def public_name(base: str, inner: str, path: str) -> str:
    """Return the public name of `path` in a file system where `base` has the path `inner`."""
    if "://" not in base:
        return path
    text, mark, query = base.partition("?")
    below = quote(path.removeprefix(inner).lstrip("/"))
    return (storage.join(text, below) if below else text) + mark + query


def ending(path: str) -> tuple[str | None, str | None]:
    """Return the format and the compression from the file extension; None for unknown ones."""
    stem, last = os.path.splitext(path.lower())
    codec = _CODECS.get(last)
    return _FORMATS.get(os.path.splitext(stem)[1] if codec else last), codec


def _format(path: str) -> str:
    kind = ending(path)[0]
    if kind is None:
        raise DataError(f"`{path}`: unknown file extension. Use one of {_KNOWN}.")
    if kind == "text":
        raise DataError(f"`{path}`: a single text file. Name the folder that holds `<label>/<file>.txt`.")
    return kind


def _folder(filesystem: pafs.FileSystem, root: str, name: Callable[[str], str]) -> list[Source]:
    data: list[Source] = []
    texts: list[list[str]] = []
    for info in list_files(filesystem, root, recursive=True):
        parts = info.path[len(root.rstrip("/")) + 1 :].split("/")
        kind = ending(info.path)[0] if info.type == pafs.FileType.File else None
        if kind is None or any(part[0] in "._" for part in parts):
            continue
        if kind != "text":
            data.append(Source(name(info.path), kind))
        elif len(parts) > 1:  # a `readme.txt` next to the data has no label
            texts.append(parts)
    if data and texts:
        raise DataError(
            f"`{root}`: holds both data files (`{data[0].path}`) and text files (`{'/'.join(texts[0])}`). "
            "Name one kind with a glob."
        )
    if not data and not texts:
        raise DataError(
            f"`{root}`: holds neither data files ({_KNOWN}) nor text files `<label>/<file>.txt`. Name another folder."
        )
    if deep := next((parts for parts in texts if len(parts) > 2), None):
        raise DataError(f"`{root}`: `{'/'.join(deep)}` is too deep. Store text files as `<label>/<file>.txt`.")
    labels = sorted({parts[0] for parts in texts})
    return data or [Source(name(f"{root.rstrip('/')}/{label}"), "text", label) for label in labels]


@contextmanager
def fault(path: str, what: str) -> Iterator[None]:
    """Turn errors of reading `path` into a `DataError` that says `what` failed."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"`{path}`: {what}: {error}") from error
