"""Paths, globs, folders and URIs to the files behind them, each with its format.

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
    """One file, or one label's folder of text files."""

    path: str
    """Absolute path or URI."""
    format: str
    """`csv`, `tsv`, `jsonl`, `parquet` or `text`."""
    label: str | None = None
    """Of `text`: the folder's name."""


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Files, globs (`*`, `?`, `[…]`, `**`; no `?` in a URI), folders and URIs as sources: in order, each sorted inside.

    A folder holds data files at any depth, or text files as `<label>/<file>.txt`; names that start with `.` or `_` are
    passed over. A glob stands for the files it matches or, where it matches none, for the folders.

    Raises `DataError` when nothing matches, an ending is unknown, a folder has neither layout or both, or a file comes
    twice; `StorageError` for a URI of an unknown scheme.
    """
    found: dict[str, Source] = {}
    for path in paths:
        for source in sorted(_expand(path), key=lambda source: source.path):
            if source.path in found:
                raise DataError(f"`{source.path}`: given twice, the second time by `{path}`")
            found[source.path] = source
    return list(found.values())


def _expand(path: str) -> list[Source]:
    place = storage.absolute(unquote(path.removeprefix("file://")) if path.startswith("file://") else path)
    remote = "://" in place
    text, mark, query = place.rstrip("/").partition("?") if remote else (place, "", "")
    wild = re.search(r"[*\[]" if remote else r"[*?\[]", text)
    if not remote and os.path.lexists(place):
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
    raise DataError(f"`{path}`: {'no file matches' if wild else 'no such file or folder'}{where}")


def stamp(source: Source) -> list[tuple[str, int, int]]:
    """Path, bytes and time of change (nanoseconds) of each file behind a source: another stamp, another content."""
    filesystem, inner = storage.resolve(source.path)
    where = pafs.FileSelector(inner) if source.format == "text" else [inner]
    infos = sorted(filesystem.get_file_info(where), key=lambda info: str(info.path))
    return [(info.path, info.size or 0, info.mtime_ns or 0) for info in infos]


def list_files(filesystem: pafs.FileSystem, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=recursive))
    return sorted(infos, key=lambda info: str(info.path))


def _glob(filesystem: pafs.FileSystem, folder: str, parts: list[str]) -> Iterator[pafs.FileInfo]:
    """What matches below a folder, level by level: nothing is listed that the pattern does not reach."""
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _glob(filesystem, folder, rest or ["*"])
    for info in list_files(filesystem, folder):
        inside = info.type == pafs.FileType.Directory
        if info.base_name[0] in "._" and info.base_name[0] != head[:1]:
            continue
        if head == "**" and inside:
            yield from _glob(filesystem, info.path, parts)
        elif fnmatchcase(info.base_name, head) and (inside or not rest):
            yield from _glob(filesystem, info.path, rest) if rest else [info]


def public_name(base: str, inner: str, path: str) -> str:
    """What a user calls `path` of a file system, when `base` is called `inner` there."""
    if "://" not in base:
        return path
    text, mark, query = base.partition("?")
    below = quote(path.removeprefix(inner).lstrip("/"))
    return (storage.join(text, below) if below else text) + mark + query


def ending(path: str) -> tuple[str | None, str | None]:
    """Format and compression, by the ending; None where there is none that is known."""
    stem, last = os.path.splitext(path.lower())
    codec = _CODECS.get(last)
    return _FORMATS.get(os.path.splitext(stem)[1] if codec else last), codec


def _format(path: str) -> str:
    found = ending(path)[0]
    if found is None:
        raise DataError(f"`{path}`: unknown ending; known: {_KNOWN}")
    if found == "text":
        raise DataError(f"`{path}`: text files are given by the folder that holds them as `<label>/<file>.txt`")
    return found


def _folder(filesystem: pafs.FileSystem, root: str, name: Callable[[str], str]) -> list[Source]:
    data: list[Source] = []
    texts: list[list[str]] = []
    for info in list_files(filesystem, root, recursive=True):
        parts = info.path[len(root.rstrip("/")) + 1 :].split("/")
        found = ending(info.path)[0] if info.type == pafs.FileType.File else None
        if found is None or any(part[0] in "._" for part in parts):
            continue
        if found != "text":
            data.append(Source(name(info.path), found))
        elif len(parts) > 1:  # a lone `readme.txt` beside the data is none
            texts.append(parts)
    if data and texts:
        raise DataError(f"`{root}`: holds both data files (`{data[0].path}`) and text files (`{'/'.join(texts[0])}`)")
    if not data and not texts:
        raise DataError(f"`{root}`: holds neither data files ({_KNOWN}) nor text files `<label>/<file>.txt`")
    if deep := next((parts for parts in texts if len(parts) > 2), None):
        raise DataError(f"`{root}`: text files must lie at `<label>/<file>.txt`, not `{'/'.join(deep)}`")
    labels = sorted({parts[0] for parts in texts})
    return data or [Source(name(f"{root.rstrip('/')}/{label}"), "text", label) for label in labels]


@contextmanager
def fault(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"`{path}`: {what}: {error}") from error
