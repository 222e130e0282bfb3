"""Files on any storage that every node can reach: a local path, `file://`, `s3://` or `gs://`.

One small vocabulary over pyarrow's filesystems. A path is a string; nothing here keeps state. Writing is atomic on a
local file system (temporary name, then rename) and by the nature of object stores elsewhere, so a reader sees a whole
file or none.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from txclf.core.errors import StorageError


def resolve(path: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path within it (absolute where it is local).

    Raises `StorageError` for a scheme pyarrow does not know.
    """
    text = os.fspath(path)
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        filesystem, inner = pafs.FileSystem.from_uri(text)
    except Exception as error:  # pyarrow raises ArrowInvalid, OSError and others by scheme
        raise StorageError(f"`{text}`: not a storage URI that pyarrow can open: {error}") from error
    return filesystem, inner


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies on this machine's file system (which may be a shared mount)."""
    return isinstance(resolve(path)[0], pafs.LocalFileSystem)


def local_path(path: str | os.PathLike[str]) -> Path:
    """The local `Path` of a local path or `file://` URI."""
    filesystem, inner = resolve(path)
    assert isinstance(filesystem, pafs.LocalFileSystem), f"{path} is not local"
    return Path(inner)


def absolute(path: str | os.PathLike[str]) -> str:
    """The same place, named so that it means the same from any working directory."""
    text = os.fspath(path)
    return text if "://" in text else resolve(text)[1]


def join(folder: str | os.PathLike[str], *names: str) -> str:
    """`folder/name/…`, for local paths and URIs alike; what follows a URI's `?` stays at its end."""
    text = os.fspath(folder)
    place, mark, query = text.partition("?") if "://" in text else (text, "", "")
    return "/".join([place.rstrip("/"), *names]) + mark + query


def folder_of(path: str | os.PathLike[str]) -> str:
    """The folder that a file lies in."""
    text = os.fspath(path)
    place, mark, query = text.partition("?") if "://" in text else (resolve(text)[1], "", "")
    return (place.rpartition("/")[0] or "/") + mark + query


def _info(path: str | os.PathLike[str]) -> pafs.FileInfo:
    filesystem, inner = resolve(path)
    try:
        return filesystem.get_file_info(inner)
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be reached: {error}") from error


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    return bool(_info(path).type != pafs.FileType.NotFound)


def modified(path: str | os.PathLike[str]) -> float | None:
    """Wall-clock time at which a file was written; None where that is not known."""
    written = _info(path).mtime_ns
    return None if written is None else written / 1e9


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there; on an object store, whether anything lies below."""
    return bool(_info(path).type == pafs.FileType.Directory)


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """Names of the files and folders in a folder, sorted; empty when it is not there. Raises `StorageError` else."""
    filesystem, inner = resolve(path)
    selector = pafs.FileSelector(inner, allow_not_found=True)
    try:
        return sorted(info.base_name for info in filesystem.get_file_info(selector))
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be listed: {_reason(error)}") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A whole file. Raises `StorageError` when it cannot be read."""
    filesystem, inner = resolve(path)
    try:
        with filesystem.open_input_stream(inner, compression=None) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be read: {_reason(error)}") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a whole file at once, making its folder. Raises `StorageError` when it cannot be written."""
    filesystem, inner = resolve(path)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            target = Path(inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                part.write_bytes(content)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        else:
            filesystem.create_dir(inner.rsplit("/", 1)[0], recursive=True)
            with filesystem.open_output_stream(inner, compression=None) as stream:
                stream.write(content)
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be written: {_reason(error)}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file. Raises `StorageError` when it cannot be read or is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise StorageError(f"`{os.fspath(path)}`: not valid JSON: {error}") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON, indented, with a newline at the end."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def remove_file(path: str | os.PathLike[str]) -> None:
    """Removes a file; nothing happens when it is not there."""
    filesystem, inner = resolve(path)
    if _info(path).type == pafs.FileType.File:
        filesystem.delete_file(inner)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a folder and all below it; nothing happens when it is not there."""
    filesystem, inner = resolve(path)
    if _info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(inner)


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Raises `StorageError` at once when a folder cannot be made or written to, before any long work."""
    probe = join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    remove_file(probe)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
