"""Data files behind paths, globs, folders and URIs, each with its format.

A folder holds data files at any depth, or text files as `<label>/<file>.txt`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from txclf.config.base import csv_delimiter, text_encoding
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "text"}
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_OTHER_FORMATS = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".avro", ".pq")
_OTHER_CODECS = (".bz2", ".xz", ".zip", ".7z", ".lz4", ".snappy", ".br")
"""Endings of files with rows that are not read."""
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
    encoding: str = "utf-8"
    """Encoding of the text, unless the format is `parquet`."""
    delimiter: str | None = None
    """Character between the columns of `csv`; None for a comma."""


def find_sources(
    paths: Sequence[str], encoding: str = "utf-8", delimiter: str | None = None, without: str | None = None
) -> list[Source]:
    """Return the sources of files, globs, folders and URIs: in the given order, the sources of one path sorted.

    `encoding` is that of text files, `delimiter` that of csv files. Raises `ConfigError` for an unknown encoding, and a
    delimiter of several characters.

    Globs have `*`, `?` (not in a URI), `[…]` and `**`. A glob takes the files that it matches and the folders named
    like a data file, such as `out.csv` of Spark, or, if it matches none of these, the folders. A folder holds data
    files at any depth, or text files as `<label>/<file>.txt`. Names that start with `.` or `_` are skipped.

    A file or folder that one path reaches several times, through links, is taken once. Nothing is taken from the folder
    `without`, unless a path names it or something in it.

    Raises `DataError` if nothing matches, a file extension is unknown, an entry is no regular file, a folder has
    neither layout or both, or two paths reach the same file. Raises `StorageError` for a URI with an unknown scheme.
    """
    option = "--encoding"
    try:
        text_encoding(encoding)
        option = "--delimiter"
        delimiter = None if delimiter is None else csv_delimiter(delimiter)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    sources: dict[Identity, Source] = {}
    for path in paths:
        for source in sorted(_expand(path, without), key=lambda source: source.path):
            source = replace(source, encoding=encoding, delimiter=delimiter)
            known = sources.setdefault(_identity_of(source), source)
            if known is not source:
                same = "" if known.path == source.path else f"the same file as `{known.path}`, so it is "
                raise DataError(
                    f"`{source.path}`: {same}given twice, the second time by `{path}`. Name each file once."
                )
    return list(sources.values())


def open_stream(path: str) -> pa.NativeFile:
    """Open a file for reading from its beginning, decompressed."""
    filesystem, inner = storage.resolve(path)
    return filesystem.open_input_stream(inner, compression=ending(inner)[1])


def _expand(path: str, without: str | None) -> list[Source]:
    target = storage.absolute(unquote(path.removeprefix("file://")) if path.startswith("file://") else path)
    remote = "://" in target
    text, mark, query = target.rstrip("/").partition("?") if remote else (target, "", "")
    wild = re.search(r"[*\[]" if remote else r"[*?\[]", text)
    if not remote and os.path.lexists(target):
        wild = None
    cut = text.rindex("/", 0, wild.start()) if wild else len(text)
    base = (text[:cut] or "/") + mark + query
    filesystem, inner = storage.resolve(base)
    name, skipped = partial(public_name, base, inner), _skipped(without, filesystem, inner)
    with fault(path, "cannot be reached"):
        pattern = text[cut + 1 :].split("/")
        matches = _glob(filesystem, inner, pattern, set(), skipped) if wild else [filesystem.get_file_info(inner)]
        unique = distinct(filesystem, matches)
        files = [info.path for info in unique if info.type == pafs.FileType.File]
        for info in unique:
            _require_regular(info)
        folders = [info.path for info in unique if info.type == pafs.FileType.Directory]
        if files:
            folders = [folder for folder in folders if ending(folder)[0]]
        if files or folders:
            below = (source for folder in folders for source in _folder(filesystem, folder, name, skipped))
            every = [*(Source(name(file), _format(file)) for file in files), *below]
            return list({_identity_of(source): source for source in reversed(every)}.values())
    where = "" if remote or os.path.isabs(path) else f" (working directory: `{os.getcwd()}`)"
    problem = "no file matches" if wild else "no such file or folder"
    raise DataError(f"`{path}`: {problem}{where}. Check the path.")


def _skipped(without: str | None, filesystem: pafs.FileSystem, root: str) -> Identity | None:
    """Return the folder that is left out below a root; None if the root is in it, or on another file system."""
    if without is None:
        return None
    other, folder = storage.resolve(without)
    if isinstance(filesystem, pafs.LocalFileSystem) != isinstance(other, pafs.LocalFileSystem):
        return None
    skipped = identity(filesystem, folder)
    is_in_it = f"{root}/".startswith(f"{folder.rstrip('/')}/") or identity(filesystem, root) == skipped
    return None if is_in_it else skipped


def stamp(source: Source) -> list[tuple[str, int, int]]:
    """Return path, bytes and modification time (nanoseconds) of each file of a source; -1 bytes if it is missing."""
    filesystem, inner = storage.resolve(source.path)
    with fault(source.path, "cannot be read"):
        infos = list_files(filesystem, inner) if source.format == "text" else [filesystem.get_file_info(inner)]
    return [(info.path, -1 if info.size is None else info.size, info.mtime_ns or 0) for info in infos]


State = list[list[tuple[str, int, int, "Identity"]]]
"""Stamp and identity of each file of some sources."""


def state(sources: Sequence[Source]) -> State:
    """Return the files of some sources, to compare them later by `require_unchanged`.

    Other than `stamp`, it tells a file from another one that took its place with the same size and time.
    """
    local = pafs.LocalFileSystem()
    return [
        [(*entry, entry[0] if "://" in source.path else identity(local, entry[0])) for entry in stamp(source)]
        for source in sources
    ]


@contextmanager
def unchanged(sources: Sequence[Source], before: State | None = None) -> Iterator[State]:
    """Raise `DataError` at the end of the block if a file changed meanwhile, also in place of an error that it caused.

    `before` is the state to compare with, by default that at the beginning of the block. It is yielded.
    """
    before = state(sources) if before is None else before
    try:
        yield before
    except Exception:
        require_unchanged(sources, before)
        raise
    require_unchanged(sources, before)


def require_unchanged(sources: Sequence[Source], before: State) -> None:
    """Raise `DataError` if a file changed since `before`, the state of the same sources."""
    for source, old, new in zip(sources, before, state(sources), strict=True):
        if old != new:
            changed = sorted({entry[0] for entry in set(old) ^ set(new)})[0]
            name = source.path if source.format != "text" else changed
            raise DataError(f"`{name}`: changed while it was read. Wait until nothing writes to it, and start again.")


Identity = tuple[int, int] | str
"""Device and inode of a local file or folder, which all links to it share; the path of another one."""


def identity(filesystem: pafs.FileSystem, path: str) -> Identity:
    """Return the identity of a file or folder; the path if it does not exist."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        with suppress(OSError):
            status = os.stat(path)
            return status.st_dev, status.st_ino
    return path


def same_file(path: str, other: str) -> bool:
    """Return True if two paths lead to the same existing file, or are the same."""
    return _identity(storage.absolute(path)) == _identity(storage.absolute(other))


def _identity(path: str) -> Identity:
    return path if "://" in path else identity(pafs.LocalFileSystem(), path)


def _identity_of(source: Source) -> Identity:
    return _identity(source.path)


def distinct(filesystem: pafs.FileSystem, infos: Iterable[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Return entries without those that are links to others of them, sorted by path."""
    ordered = sorted(infos, key=lambda info: str(info.path))
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    links = {info.path for info in ordered if is_local and os.path.islink(info.path)}
    unique: dict[Identity, pafs.FileInfo] = {}
    for info in sorted(ordered, key=lambda info: info.path in links):
        unique.setdefault(identity(filesystem, info.path), info)
    return sorted(unique.values(), key=lambda info: str(info.path))


def list_files(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Return the sorted entries of a folder, broken links among them; none if it does not exist."""
    where: Any = pafs.FileSelector(folder, allow_not_found=True)
    if isinstance(filesystem, pafs.LocalFileSystem):  # whose selector leaves out broken links
        where = [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    return sorted(filesystem.get_file_info(where), key=lambda info: str(info.path))


def text_files(folder: str) -> list[str]:
    """Return the text files of a folder, sorted: those that are neither hidden nor in folders below it."""
    filesystem, inner = storage.resolve(folder)
    with fault(folder, "cannot be listed"):
        infos = distinct(filesystem, list_files(filesystem, inner))
    return [
        public_name(folder, inner, info.path)
        for info in infos
        if info.base_name[0] not in "._" and ending(info.path)[0] == "text" and info.type == pafs.FileType.File
    ]


def _walk(filesystem: pafs.FileSystem, root: str, skipped: Identity | None) -> Iterator[pafs.FileInfo]:
    """Yield the files at any depth of a folder, without hidden ones and those in the folder `skipped`.

    Each folder is entered once, and links to folders come last. So no loop of links is followed.
    """
    if not isinstance(filesystem, pafs.LocalFileSystem):  # one listing is faster there, and there are no links
        for info in filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True)):
            is_hidden = any(part[0] in "._" for part in info.path[len(root.rstrip("/")) + 1 :].split("/"))
            is_skipped = skipped is not None and f"{info.path}/".startswith(f"{skipped}/")
            if info.type != pafs.FileType.Directory and not (is_hidden or is_skipped):
                yield info
        return
    folders, links = [root], list[str]()
    entered = {skipped}
    while folders or links:
        folder = (folders or links).pop(0)
        key = identity(filesystem, folder)
        if key in entered:
            continue
        entered.add(key)
        for info in list_files(filesystem, folder):
            if info.base_name[0] in "._":
                continue
            if info.type == pafs.FileType.Directory:
                (links if os.path.islink(info.path) else folders).append(info.path)
            else:
                yield info


def _glob(
    filesystem: pafs.FileSystem,
    folder: str,
    parts: list[str],
    entered: set[tuple[Identity, int]],
    skipped: Identity | None,
) -> Iterator[pafs.FileInfo]:
    """Yield the matches below a folder, level by level. Folders that the pattern does not reach are not listed.

    `entered` has the folders that were listed, with the number of parts that were left: each pair is listed once.
    """
    key = (identity(filesystem, folder), len(parts))
    if key in entered:
        return
    entered.add(key)
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _glob(filesystem, folder, rest or ["*"], entered, skipped)
    for info in list_files(filesystem, folder):
        is_folder = info.type == pafs.FileType.Directory
        if info.base_name[0] in "._" and info.base_name[0] != head[:1]:
            continue
        if is_folder and skipped is not None and identity(filesystem, info.path) == skipped:
            continue
        if head == "**" and is_folder:
            yield from _glob(filesystem, info.path, parts, entered, skipped)
        elif fnmatchcase(info.base_name, head) and (is_folder or not rest):
            yield from _glob(filesystem, info.path, rest, entered, skipped) if rest else [info]


def _require_regular(info: pafs.FileInfo) -> None:
    """Raise `DataError` for a broken link, and for a pipe, a socket or a device."""
    if info.type == pafs.FileType.NotFound and os.path.islink(info.path):
        target = os.readlink(info.path)
        raise DataError(
            f"`{info.path}`: a link to `{target}`, which does not exist. Restore the file or remove the link."
        )
    if info.type == pafs.FileType.Unknown:
        raise DataError(f"`{info.path}`: neither a file nor a folder. Write its content to a file first.")


def public_name(base: str, inner: str, path: str) -> str:
    """Return the public name of `path` in a file system where `base` has the path `inner`."""
    if "://" not in base:
        return path
    below = quote(path.removeprefix(inner).lstrip("/"))
    return storage.join(base, below) if below else base


def ending(path: str) -> tuple[str | None, str | None]:
    """Return the format and the compression from the file extension; None for unknown ones."""
    stem, last = os.path.splitext(storage.split_query(path)[0].lower())
    codec = _CODECS.get(last)
    return _FORMATS.get(os.path.splitext(stem)[1] if codec else last), codec


def _format(path: str) -> str:
    kind = ending(path)[0]
    if kind is None:
        raise DataError(f"`{path}`: unknown file extension. Use one of {_KNOWN}.")
    if kind == "text":
        raise DataError(f"`{path}`: a single text file. Name the folder that holds `<label>/<file>.txt`.")
    return kind


def _folder(
    filesystem: pafs.FileSystem, root: str, name: Callable[[str], str], skipped: Identity | None
) -> list[Source]:
    data: list[Source] = []
    texts: list[list[str]] = []
    for info in distinct(filesystem, _walk(filesystem, root, skipped)):
        parts = info.path[len(root.rstrip("/")) + 1 :].split("/")
        kind = ending(info.path)[0]
        if kind is None:
            _require_no_data(info.path, name)
            continue
        _require_regular(info)
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


def _require_no_data(path: str, name: Callable[[str], str]) -> None:
    """Raise `DataError` for a file of a folder that looks like rows in a format that cannot be read."""
    stem, last = os.path.splitext(path.lower())
    if last in _OTHER_FORMATS or (last in _OTHER_CODECS and ending(stem)[0] not in (None, "text")):
        raise DataError(
            f"`{name(path)}`: cannot be read, and its rows would be missing. Convert it to one of {_KNOWN}, or move "
            "it to another folder."
        )


@contextmanager
def fault(path: str, what: str) -> Iterator[None]:
    """Turn errors of reading `path` into a `DataError` that says `what` failed."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"`{path}`: {what}: {error}") from error
