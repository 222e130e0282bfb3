"""Files on local paths and `file://` URIs: atomic writes, and errors that name the path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs as pafs
from pydantic import BaseModel

from txclf.core import storage
from txclf.core.errors import StorageError


@pytest.fixture(params=["path", "uri", "object"])
def name(request: pytest.FixtureRequest) -> Callable[[Path], str | Path]:
    """Return a way to write a path: as a string, as a `file://` URI or as a `Path`."""
    ways: dict[str, Callable[[Path], str | Path]] = {"path": str, "uri": lambda path: f"file://{path}", "object": Path}
    return ways[request.param]


# -------------------------------------------------------------------------------------------------------------- naming


@pytest.mark.parametrize(
    ("folder", "names", "expected"),
    [
        ("runs", ("a",), "runs/a"),
        ("runs/", ("a", "b.txt"), "runs/a/b.txt"),
        ("/", ("a",), "/a"),
        ("a?b", ("c",), "a?b/c"),
        (Path("runs"), ("a",), "runs/a"),
        ("s3://bucket", ("a",), "s3://bucket/a"),
        ("s3://bucket/runs/", ("a", "b"), "s3://bucket/runs/a/b"),
        ("s3://bucket/runs?region=x&scheme=http", ("a",), "s3://bucket/runs/a?region=x&scheme=http"),
        ("s3://bucket/runs/?endpoint_override=host:9000", ("a",), "s3://bucket/runs/a?endpoint_override=host:9000"),
    ],
)
def test_join_appends_names_before_the_query(folder: str | Path, names: tuple[str, ...], expected: str) -> None:
    assert storage.join(folder, *names) == expected


@pytest.mark.parametrize(
    ("path", "folder", "named"),
    [
        ("/a/b.csv", "/a", "/a/b.csv.txt"),
        ("/a/b?c/d", "/a/b?c", "/a/b?c/d.txt"),
        ("s3://bucket/a/b.csv?region=x/y", "s3://bucket/a?region=x/y", "s3://bucket/a/b.csv.txt?region=x/y"),
        ("s3://bucket/a/b/?region=x", "s3://bucket/a?region=x", None),
    ],
)
def test_folder_of_and_named_like_keep_the_query(path: str, folder: str, named: str | None) -> None:
    assert storage.folder_of(path) == folder
    if named:
        assert storage.named_like(path, ".txt") == named


def test_absolute_path_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("a/../b") == f"{tmp_path}/b"
    assert storage.absolute("/a/b") == "/a/b"
    assert storage.absolute("~/a") == "/home/someone/a"
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


def test_paths_that_are_none_are_refused() -> None:
    for function in (storage.absolute, storage.join, storage.folder_of, storage.exists):
        for value in (["runs"], b"runs", None):
            with pytest.raises(StorageError, match=f"`{type(value).__name__}`: not a path"):
                function(value)  # type: ignore[arg-type]


def test_local_path_of_paths_and_file_uris() -> None:
    assert storage.is_local("/a")
    assert storage.is_local("file:///a")
    assert storage.local_path("file:///a%20b/c") == Path("/a b/c")
    assert isinstance(storage.resolve("file:///a")[0], pafs.LocalFileSystem)


@pytest.mark.parametrize("uri", ["nfs://host/a", "file://relative/a", "file:///a b"])
def test_resolve_unknown_uri_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=f"`{uri}`: not a storage URI that pyarrow can open: "):
        storage.resolve(uri)


# --------------------------------------------------------------------------------------------------- reading, writing


@pytest.mark.parametrize("content", [b"", b"text\n", bytes(range(256)) * 5000])
def test_read_bytes_returns_what_was_written(
    tmp_path: Path, name: Callable[[Path], str | Path], content: bytes
) -> None:
    place = name(tmp_path / "new" / "folder" / "f.gz")  # nothing is unpacked by its ending
    storage.write_bytes(place, b"before")
    storage.write_bytes(place, content)
    assert storage.read_bytes(place) == content
    assert os.listdir(tmp_path / "new" / "folder") == ["f.gz"]


@pytest.mark.parametrize("content", [b"", b"text\n", bytes(range(256)) * 200_000])
def test_sha256_is_that_of_the_content(tmp_path: Path, content: bytes) -> None:
    storage.write_bytes(tmp_path / "f.gz", content)
    assert storage.sha256(tmp_path / "f.gz") == hashlib.sha256(content).hexdigest()
    with pytest.raises(StorageError, match="none`: cannot be read: "):
        storage.sha256(tmp_path / "none")


def test_exists_and_list_folder_see_files_and_folders(tmp_path: Path, name: Callable[[Path], str | Path]) -> None:
    for file in ("b.txt", "a.txt", "deep/c.txt", ".hidden"):
        storage.write_bytes(tmp_path / file, b"")
    assert storage.list_folder(name(tmp_path)) == [".hidden", "a.txt", "b.txt", "deep"]
    assert storage.list_folder(name(tmp_path / "none")) == []
    found = {file: storage.exists(name(tmp_path / file)) for file in ("a.txt", "deep", "none", "a.txt/none")}
    assert found == {"a.txt": True, "deep": True, "none": False, "a.txt/none": False}


def test_write_bytes_failure_keeps_the_old_file(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "taken" / "f", b"kept")
    with pytest.raises(StorageError, match=r"/taken`: cannot be written: Is a directory"):
        storage.write_bytes(tmp_path / "taken", b"new")
    assert os.listdir(tmp_path) == ["taken"]
    assert storage.read_bytes(tmp_path / "taken" / "f") == b"kept"


@pytest.mark.parametrize("deeper", ["x", "x/y"])
def test_write_bytes_below_a_file_is_refused(tmp_path: Path, deeper: str) -> None:
    (tmp_path / "f").write_bytes(b"")
    place = tmp_path / "f" / deeper
    with pytest.raises(StorageError, match=f"f/{deeper}`: cannot be written: "):
        storage.write_bytes(place, b"")
    with pytest.raises(StorageError, match=f"f/{deeper}`: cannot be read: "):
        storage.read_bytes(place)
    with pytest.raises(StorageError, match=rf"f/{deeper}/\.probe-\w+`: cannot be written: "):
        storage.require_writable(place)


def test_read_bytes_of_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none`: cannot be read: "):
        storage.read_bytes(tmp_path / "none")
    with pytest.raises(StorageError, match=f"`{tmp_path}`: cannot be read: "):
        storage.read_bytes(tmp_path)


def test_list_folder_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError, match="f`: cannot be listed: "):
        storage.list_folder(tmp_path / "f")


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(StorageError, match=r"holds a file whose name is not valid UTF-8\. Rename it\."):
        storage.list_folder(tmp_path)
    with pytest.raises(StorageError, match=r"caf\\udce9`: the name is not valid UTF-8\."):
        storage.exists(tmp_path / name)


def test_require_writable_creates_an_empty_folder(tmp_path: Path, name: Callable[[Path], str | Path]) -> None:
    storage.require_writable(name(tmp_path / "new" / "folder"))
    assert os.listdir(tmp_path / "new" / "folder") == []


# ---------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("value", [None, 1.5, "é🎉", [1, {"a": []}], {"ü": True, "b": "\n"}])
def test_read_json_returns_what_was_written(tmp_path: Path, value: object) -> None:
    storage.write_json(tmp_path / "a.json", value)
    assert storage.read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"\n")


def test_write_json_lines_has_one_key_per_line(tmp_path: Path) -> None:
    storage.write_json_lines(tmp_path / "a.json", {"é": [[1, 2], [3, 4]], "b": {"c": None}})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n"é": [[1, 2], [3, 4]],\n"b": {"c": null}\n}\n'
    assert storage.read_json(tmp_path / "a.json") == {"é": [[1, 2], [3, 4]], "b": {"c": None}}


def test_write_json_is_indented(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"é": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n  "é": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_write_json_refuses_nan(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"{} {}", b"\xff\xfe"])
def test_read_json_invalid_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.json`: not valid JSON: "):
        storage.read_json(tmp_path / "a.json")


# -------------------------------------------------------------------------------------------------------- removal


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_remove_file_and_folder(tmp_path: Path, name: Callable[[Path], str | Path]) -> None:
    for file in ("a", "folder/b", "folder/deep/c"):
        storage.write_bytes(tmp_path / file, b"")
    storage.remove_folder(name(tmp_path / "folder"))
    assert tree(tmp_path) == {"a": b""}
    storage.remove_folder(name(tmp_path / "folder"))
    storage.remove_folder(name(tmp_path / "a"))
    assert tree(tmp_path) == {"a": b""}
    storage.remove_file(name(tmp_path / "a"))
    storage.remove_file(name(tmp_path / "a"))
    assert tree(tmp_path) == {}


class Numbers(BaseModel):
    """A model of a file."""

    first: int


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"first":' * 100_000, b'{"first": "\\ud800"}', b"\xff", b"", b"9" * 5000]
)
def test_read_json_that_is_none_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    for read in (storage.read_json, storage.read_object, lambda path: storage.read_as(path, Numbers)):
        with pytest.raises(StorageError, match=r"a\.json`: not valid JSON"):
            read(tmp_path / "a.json")


def test_read_json_with_whole_surrogate_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\\ud83d\\ude00"]')
    assert storage.read_json(tmp_path / "a.json") == ["\U0001f600"]


def test_read_object_and_model_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"first": 1}')
    assert storage.read_object(path, "first") == {"first": 1}
    assert storage.read_as(path, Numbers) == Numbers(first=1)
    with pytest.raises(StorageError, match=r"a\.json`: damaged: it has no `second`\. Restore a copy"):
        storage.read_object(path, "first", "second")
    path.write_text("[]")
    with pytest.raises(StorageError, match=r"damaged: it is no JSON object"):
        storage.read_object(path)
    path.write_text('{"first": "x"}')
    with pytest.raises(StorageError, match=r"damaged at `first`: .*\. Restore a copy"):
        storage.read_as(path, Numbers)
