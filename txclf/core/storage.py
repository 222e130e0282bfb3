"""Files on any storage that every node can reach: a local path, `file://`, `s3://` or `gs://`.

Thin functions over the file systems of pyarrow; a path is a string. Writes are atomic: on a local file system by a
temporary name and a rename, on object stores by design. So a reader sees a complete file or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from pyarrow import fs as pafs
from pydantic import BaseModel, ValidationError

from txclf.core.errors import StorageError
from txclf.core.text import shown

_CREDENTIALS = re.compile(
    r"://(?:[^/?#@]*:[^?#]*@|[^#]*[?&;](?:[\w-]*(?:key|secret|token|password|passwd|credential|signature)[\w-]*|sig|sas)=)",
    re.IGNORECASE,
)
"""A user with a password before the host, or a parameter of a query that is named like a secret."""
_BUCKET = re.compile(
    r"(?P<store>(?:s3|gs|gcs)://(?:[^/?@]*@)?(?P<bucket>[^/?@]+))(?P<key>(?:/[^?]*)?)(?P<query>\?.*)?", re.DOTALL
)
"""URI of a bucket or of a file in it."""
_VARIABLES = ("AWS_", "GOOGLE_", "GCS_", "CLOUDSDK_", "STORAGE_EMULATOR_")
"""Beginnings of the environment variables from which clients take addresses and credentials."""
Content = TypeVar("Content", bound=BaseModel)


def resolve(path: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path within it, which is absolute for a local path.

    Raises `StorageError` for a URI scheme that pyarrow does not know, and for a name that is not UTF-8.
    """
    text = path_text(path)
    refuse_credentials(text)
    if re.search("[\ud800-\udfff]", text):
        raise StorageError(f"`{text}`: the name is not valid UTF-8. Rename the file or the folder.")
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        found = _BUCKET.fullmatch(text)
        if not found:
            return pafs.FileSystem.from_uri(text)  # type: ignore[no-any-return]
        variables = tuple(item for item in os.environ.items() if item[0].startswith(_VARIABLES))
        filesystem = _object_store(found["store"] + (found["query"] or ""), variables)
        return filesystem, unquote(found["bucket"] + found["key"]).rstrip("/")
    except Exception as error:  # pyarrow raises ArrowInvalid, OSError and others by scheme
        raise StorageError(
            f"`{text}`: not a storage URI that pyarrow can open: {error}. Use a path, `s3://` or `gs://`."
        ) from error


@lru_cache(maxsize=64)
def _object_store(uri: str, variables: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    """Return the client of a bucket, the same for all its files: a new one connects and looks for credentials again."""
    return pafs.FileSystem.from_uri(uri)[0]


def path_text(path: str | os.PathLike[str]) -> str:
    """Return a path or URI as a string. Raises `StorageError` for a value that is none, such as a table."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise StorageError(f"`{type(path).__name__}`: not a path. Pass the path or URI of a file or folder.")
    return text


def refuse_credentials(text: str) -> None:
    """Raise `StorageError` if a URI holds a password or key: it would be stored in run files, logs and pages."""
    found = _CREDENTIALS.search(text)
    if found:
        scheme = re.split(r"\W", text[: found.start()])[-1]
        raise StorageError(
            f"`{scheme}://…`: credentials do not belong into a URI, because it is stored and shown. Set them where the "
            "storage looks for them, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
        )


def is_local(path: str | os.PathLike[str]) -> bool:
    """Return True for a path on the file system of this machine, which may be a shared mount."""
    return isinstance(resolve(path)[0], pafs.LocalFileSystem)


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the `Path` of a local path or `file://` URI."""
    filesystem, inner = resolve(path)
    assert isinstance(filesystem, pafs.LocalFileSystem), f"{path} is not local"
    return Path(inner)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path that means the same in any working directory."""
    text = path_text(path)
    return text if "://" in text else resolve(text)[1]


def split_query(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a path or URI without its query, and the query from its `?` on, which is empty for a local path."""
    text = path_text(path)
    base, mark, query = text.partition("?") if "://" in text else (text, "", "")
    return base, mark + query


def named_like(path: str | os.PathLike[str], suffix: str) -> str:
    """Return the path of a file next to another one, whose name is longer by `suffix`."""
    base, query = split_query(path)
    return base + suffix + query


def join(folder: str | os.PathLike[str], *names: str) -> str:
    """Return `folder/name/…` for a local path or URI. The query of a URI stays at its end."""
    base, query = split_query(folder)
    return "/".join([base.rstrip("/"), *names]) + query


def folder_of(path: str | os.PathLike[str]) -> str:
    """Return the folder that contains a file or folder."""
    base, query = split_query(absolute(path))
    return (base.rstrip("/").rpartition("/")[0] or "/") + query


def _info(path: str | os.PathLike[str]) -> pafs.FileInfo:
    filesystem, inner = resolve(path)
    try:
        return filesystem.get_file_info(inner)
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be reached: {error}") from error


def exists(path: str | os.PathLike[str]) -> bool:
    """Return True if a file or folder exists."""
    return bool(_info(path).type != pafs.FileType.NotFound)


def modified(path: str | os.PathLike[str]) -> float | None:
    """Return the wall-clock time of the last write, in seconds since the epoch, or None if it is unknown."""
    written = _info(path).mtime_ns
    return None if written is None else written / 1e9


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return True if a folder exists. On an object store, a folder exists if it has content."""
    return bool(_info(path).type == pafs.FileType.Directory)


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """Return the sorted names of the files and folders in a folder; empty if it does not exist.

    Raises `StorageError` if the folder cannot be listed.
    """
    filesystem, inner = resolve(path)
    selector = pafs.FileSelector(inner, allow_not_found=True)
    try:
        return sorted(info.base_name for info in filesystem.get_file_info(selector))
    except UnicodeDecodeError:
        raise StorageError(f"`{os.fspath(path)}`: holds a file whose name is not valid UTF-8. Rename it.") from None
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be listed: {_reason(error)}") from error


def read_bytes(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """Return the content of a file, or its first `max_bytes`. Raises `StorageError` if it cannot be read."""
    filesystem, inner = resolve(path)
    try:
        with filesystem.open_input_stream(inner, compression=None) as stream:
            return bytes(stream.read() if max_bytes is None else stream.read(max_bytes))
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be read: {_reason(error)}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. Raises `StorageError` if it cannot be read."""
    filesystem, inner = resolve(path)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(inner, compression=None) as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be read: {_reason(error)}") from error
    return digest.hexdigest()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically and create its folder. Raises `StorageError` if it cannot be written."""
    filesystem, inner = resolve(path)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            target = Path(inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                temporary.write_bytes(content)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        else:  # which needs no folders
            with filesystem.open_output_stream(inner, compression=None) as stream:
                stream.write(content)
    except OSError as error:
        raise StorageError(f"`{os.fspath(path)}`: cannot be written: {_reason(error)}") from error


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file atomically, in pieces, and create the folder of its copy.

    Raises `StorageError` if it cannot be read or written.
    """
    (read_from, source_path), (write_to, target_path) = resolve(source), resolve(target)
    is_here = isinstance(write_to, pafs.LocalFileSystem)
    folder, _, name = target_path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}" if is_here else target_path
    try:
        if is_here:
            write_to.create_dir(folder, recursive=True)
        pafs.copy_files(source_path, temporary, source_filesystem=read_from, destination_filesystem=write_to)
        if is_here:
            os.replace(temporary, target_path)
    except OSError as error:
        raise StorageError(f"`{os.fspath(source)}`: cannot be copied to `{target}`: {_reason(error)}") from error
    finally:
        if is_here:
            Path(temporary).unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value of a JSON file. Raises `StorageError` if it cannot be read or is not JSON."""
    return parse_json(read_bytes(path), path)


def parse_json(content: bytes, path: str | os.PathLike[str]) -> Any:
    """Return the value of JSON from a file. Raises `StorageError` if it is not JSON, or not Unicode."""
    try:
        value = json.loads(content)
        if b"\\ud" in content.lower():  # JSON can escape half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else shown(error, 300)
        raise StorageError(f"`{os.fspath(path)}`: not valid JSON: {reason}") from error


def read_object(path: str | os.PathLike[str], *keys: str) -> dict[str, Any]:
    """Return the object of a JSON file. Raises `StorageError` if it is none or lacks one of the keys."""
    value = read_json(path)
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing or not isinstance(value, dict):
        problem = f"it has no `{missing[0]}`" if missing else "it is no JSON object"
        raise StorageError(f"`{os.fspath(path)}`: damaged: {problem}. Restore a copy of the file.")
    return value


def read_as(path: str | os.PathLike[str], kind: type[Content]) -> Content:
    """Return a JSON file as a pydantic model. Raises `StorageError` if it cannot be read or does not fit the model."""
    return as_model(read_json(path), kind, path)


def as_model(value: Any, kind: type[Content], path: str | os.PathLike[str]) -> Content:
    """Return a value from a file as a pydantic model. Raises `StorageError` if it does not fit the model."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(shown(part) for part in problem["loc"])
        place = f" at `{key}`" if key else ""
        raise StorageError(
            f"`{os.fspath(path)}`: damaged{place}: {problem['msg']}. Restore a copy of the file."
        ) from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON with a newline at the end. Raises `StorageError` if it cannot be written."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_json_lines(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON object with one key per line, so that a long list takes one line and not one per number.

    Raises `StorageError` if it cannot be written.
    """
    lines = (
        f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(item, ensure_ascii=False, allow_nan=False)}"
        for key, item in value.items()
    )
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a file if it exists."""
    filesystem, inner = resolve(path)
    if _info(path).type == pafs.FileType.File:
        filesystem.delete_file(inner)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder and its content if it exists. Raises `StorageError` if it cannot be removed."""
    filesystem, inner = resolve(path)
    if _info(path).type == pafs.FileType.Directory:
        try:
            filesystem.delete_dir(inner)
        except OSError as error:
            raise StorageError(f"`{os.fspath(path)}`: cannot be removed: {_reason(error)}") from error


def move_folder(source: str, target: str, last: str) -> None:
    """Move a folder to a path at which nothing is; on a local file system in one step.

    Object stores cannot do that: there the file `last`, which marks the folder as complete, is moved last.

    Raises `StorageError` if it cannot be moved.
    """
    (filesystem, old), (_, new) = resolve(source), resolve(target)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            filesystem.move(old, new)
            return
        infos = filesystem.get_file_info(pafs.FileSelector(old, recursive=True))
        paths = sorted((info.path for info in infos if info.type == pafs.FileType.File), key=f"{old}/{last}".__eq__)
        for path in paths:
            filesystem.move(path, new + path.removeprefix(old))
        filesystem.delete_dir(old)
    except OSError as error:
        raise StorageError(f"`{source}`: cannot be moved to `{target}`: {_reason(error)}") from error


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Raise `StorageError` if a folder cannot be created or written to. Called before long work."""
    probe = join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    remove_file(probe)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
