"""Data files behind folders, globs and URIs, with their formats."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.helpers.data_files import ROWS, WRITERS, as_csv, as_tsv, checked, pairs, put
from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError, StorageError
from txclf.data import prepare
from txclf.data.records import read_raw
from txclf.data.sources import Source, find_sources, require_unchanged, same_file, state


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("a.CSV.GZ", "csv"),
        ("a.tsv.zst", "tsv"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson.gz", "jsonl"),
        ("a.parquet", "parquet"),
        ("year=2024/a[1].csv", "csv"),
    ],
)
def test_ending_gives_format_and_compression(tmp_path: Path, name: str, kind: str) -> None:
    path = put(tmp_path / name)
    assert find_sources([path]) == [Source(path, kind)]


TREE = [
    "b.csv",
    "a.jsonl",
    "deep/er/c.parquet",
    "deep/d.tsv.gz",
    "readme.md",
    "notes.txt",
    ".h.csv",
    "_x.csv",
    ".d/e.csv",
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.jsonl", "b.csv", "deep/d.tsv.gz", "deep/er/c.parquet"]),
        ("*.csv", ["b.csv"]),
        ("?.[cj]s*", ["a.jsonl", "b.csv"]),
        ("deep/**", ["deep/d.tsv.gz", "deep/er/c.parquet"]),
        ("**/*.[pc]*", ["b.csv", "deep/er/c.parquet"]),
        ("**/**/er/**/c.*", ["deep/er/c.parquet"]),
        ("*/d.tsv.gz", ["deep/d.tsv.gz"]),
        ("_*.csv", ["_x.csv"]),
        ("d*p", ["deep/d.tsv.gz", "deep/er/c.parquet"]),
    ],
)
def test_find_sources_folders_and_globs_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    for name in TREE:
        put(tmp_path / name)
    wanted = [str(tmp_path / name) for name in expected]
    assert [source.path for source in find_sources([f"{tmp_path}/{pattern}"])] == wanted
    monkeypatch.chdir(tmp_path)
    assert [source.path for source in find_sources([pattern or "."])] == wanted
    if "?" not in pattern:
        assert [source.path for source in find_sources([f"file://{tmp_path}/{pattern}"])] == wanted


def test_find_sources_file_uri_may_be_quoted(tmp_path: Path) -> None:
    path = put(tmp_path / "a b" / "c d.csv", as_csv(ROWS))
    for uri in (f"file://{tmp_path}/a%20b/c%20d.csv", f"file://{tmp_path}/a%20b", f"file://{tmp_path}/a%20b/*.csv"):
        assert find_sources([uri]) == [Source(path, "csv")]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/in?region=x", ["s3://bucket/in/a%20b.csv.gz?region=x", "s3://bucket/in/d/c.tsv?region=x"]),
        ("s3://bucket/in/", ["s3://bucket/in/a%20b.csv.gz", "s3://bucket/in/d/c.tsv"]),
        ("s3://bucket/in/**/*.tsv", ["s3://bucket/in/d/c.tsv"]),
        ("s3://bucket/i*/*.gz?region=x", ["s3://bucket/in/a%20b.csv.gz?region=x"]),
        ("s3://bucket/in/d/c.tsv", ["s3://bucket/in/d/c.tsv"]),
        ("s3://bucket/text", ["s3://bucket/text/good%20one"]),
    ],
)
def test_find_sources_uris_keep_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: list[str]
) -> None:
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())

    def resolve(path: str) -> tuple[pafs.FileSystem, str]:
        return remote, path.partition("?")[0].removeprefix("s3://").replace("%20", " ")

    monkeypatch.setattr(storage, "resolve", resolve)
    put(tmp_path / "bucket" / "in" / "a b.csv.gz", gzip.compress(as_csv(ROWS)))
    put(tmp_path / "bucket" / "in" / "d" / "c.tsv", as_tsv(ROWS))
    put(tmp_path / "bucket" / "text" / "good one" / "1.txt", "fine")
    sources = find_sources([uri])
    assert [source.path for source in sources] == expected
    for source in sources:
        rows, rejects = checked(source)
        assert not rejects
        assert pairs(rows) == ([("fine", "good one")] if source.format == "text" else ROWS)


def test_find_sources_keeps_the_order_of_paths(tmp_path: Path) -> None:
    first, second = put(tmp_path / "z.csv"), put(tmp_path / "a.csv")
    assert [source.path for source in find_sources([first, second])] == [first, second]


@pytest.mark.parametrize("pattern", ["", "**", "**/*.csv", "*/**/*.csv", "*"])
def test_find_sources_links_are_read_once_and_loops_not_followed(tmp_path: Path, pattern: str) -> None:
    root = tmp_path / "d"
    first, second = put(root / "x" / "a.csv", as_csv(ROWS)), put(root / "x" / "deep" / "b.csv", as_csv(ROWS))
    (root / "x" / "0.csv").symlink_to("a.csv")
    (root / "x" / "c.csv").hardlink_to(second)
    (root / "latest").symlink_to(".")
    (root / "again").symlink_to("x")
    (root / "x" / "deep" / "up").symlink_to(root)
    found = [source.path for source in find_sources([f"{root}/{pattern}"])]
    assert len(found) == 2
    assert {Path(path).stat().st_ino for path in found} == {Path(path).stat().st_ino for path in (first, second)}
    if not pattern:
        assert found[0] == first


def test_find_sources_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "else" / "where" / "a.csv")
    put(tmp_path / "d" / "b.csv")
    (tmp_path / "d" / "far").symlink_to(tmp_path / "else")
    assert [source.path for source in find_sources([str(tmp_path / "d")])] == [
        str(tmp_path / "d" / "b.csv"),
        str(tmp_path / "d" / "far" / "where" / "a.csv"),
    ]


def test_find_sources_text_files_that_are_links_are_read_once(tmp_path: Path) -> None:
    first = Path(put(tmp_path / "pos" / "1.txt", "good"))
    (tmp_path / "pos" / "2.txt").hardlink_to(first)
    (tmp_path / "pos" / "0.txt").symlink_to("1.txt")
    put(tmp_path / "neg" / "1.txt", "bad")
    (tmp_path / "latest").symlink_to(".")
    neg, pos = find_sources([str(tmp_path)])
    assert pairs(checked(pos)[0]) == [("good", "pos")]
    assert pairs(checked(neg)[0]) == [("bad", "neg")]


def test_find_sources_folder_named_like_a_file_is_taken_by_a_glob(tmp_path: Path) -> None:
    files = [put(tmp_path / "a.csv"), put(tmp_path / "b.csv" / "part-0.csv"), put(tmp_path / "b.csv" / "part-1.csv")]
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0.csv.crc"):
        put(tmp_path / "b.csv" / name)
    put(tmp_path / "other" / "c.csv")
    for pattern in ("*.csv", "*"):
        assert [source.path for source in find_sources([f"{tmp_path}/{pattern}"])] == files
    assert [source.path for source in find_sources([str(tmp_path / "b.csv")])] == files[1:]


@pytest.mark.parametrize("pattern", ["x.csv", "*.csv", "**", ""])
def test_find_sources_entry_that_is_no_file_is_refused(tmp_path: Path, pattern: str) -> None:
    put(tmp_path / "a.csv")
    path = tmp_path / "x.csv"
    path.symlink_to("gone.csv")
    with pytest.raises(DataError, match=r"x\.csv`: a link to `gone\.csv`, which does not exist"):
        find_sources([f"{tmp_path}/{pattern}"])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"x\.csv`: neither a file nor a folder"):
        find_sources([f"{tmp_path}/{pattern}"])


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def replace(path: Path) -> None:
    """Put another file of the same size and time in the place of a file."""
    times, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes().swapcase())
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "grown": rewrite,
    "replaced": replace,
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
def test_require_unchanged_names_the_changed_file(tmp_path: Path, change: str) -> None:
    paths = [put(tmp_path / name, "text,label\na,x\n") for name in ("a.csv", "b.csv")]
    sources = find_sources(paths)
    before = state(sources)
    require_unchanged(sources, before)
    CHANGES[change](Path(paths[1]))
    with pytest.raises(DataError, match=r"b\.csv`: changed while it was read"):
        require_unchanged(sources, before)


@pytest.mark.parametrize("change", ["grown", "replaced", "touched", "removed"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "pos/a.txt"])
def test_read_raw_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str, change: str) -> None:
    kind = name.partition(".")[2]
    content = WRITERS[kind](ROWS) if kind in WRITERS else b"fine"
    path = Path(put(tmp_path / name, content))
    (source,) = find_sources([str(tmp_path)])
    batches = read_raw(source, batch_rows=1)
    assert next(batches).rows == [1]
    CHANGES[change](path)
    with pytest.raises(DataError, match=rf"{name}`: changed while it was read"):
        list(batches)


def test_source_is_pickled(tmp_path: Path) -> None:
    source = Source("/x/pos", "text", "pos")
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    ("files", "paths", "message"),
    [
        ([], ["none.csv"], r"`none\.csv`: no such file or folder \(working directory: `.*`\)"),
        ([], ["*.csv"], r"`\*\.csv`: no file matches \(working directory"),
        ([], ["none/**/*.csv"], "no file matches"),
        ([], ["/none/such.csv"], r"`/none/such\.csv`: no such file or folder\. Check the path\.$"),
        (
            ["a.json"],
            ["a.json"],
            r"unknown file extension\. Use one of \.csv, \.tsv, \.jsonl, \.ndjson, \.parquet, each also with \.gz",
        ),
        (["a.csv.bz2"], ["a.csv.bz2"], "unknown file extension"),
        (["a"], ["a"], "unknown file extension"),
        (["a.txt"], ["a.txt"], "a single text file. Name the folder that holds `<label>/<file>.txt`"),
        (["d/a.csv", "d/pos/1.txt"], ["d"], r"holds both data files \(`.*/d/a\.csv`\) and text files \(`pos/1\.txt`\)"),
        (["d/readme.md", "d/1.txt"], ["d"], "holds neither data files .* nor text files"),
        (
            ["d/pos/1.txt", "d/neg/x/2.txt"],
            ["d"],
            "`neg/x/2.txt` is too deep. Store text files as `<label>/<file>.txt`",
        ),
        (["a.csv"], ["a.csv", "./a.csv"], r"a\.csv`: given twice, the second time by `\./a\.csv`"),
        (["d/a.csv"], ["d", "d/*.csv"], "given twice"),
        (["d/pos/1.txt"], ["d", "d"], "d/pos`: given twice"),
        (["link:b.csv"], ["a.csv", "b.csv"], r"b\.csv`: the same file as `.*/a\.csv`, so it is given twice"),
    ],
)
def test_find_sources_invalid_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], paths: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        if file.startswith("link:"):
            Path("a.csv").symlink_to(tmp_path / file[5:])
        put(tmp_path / file.removeprefix("link:"))
    with pytest.raises(DataError, match=message):
        find_sources(paths)


def test_find_sources_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="nfs"):
        find_sources(["nfs://host/a.csv"])


def test_find_sources_unknown_encoding_or_delimiter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(ConfigError, match="--encoding: unknown encoding `nope`"):
        find_sources([f"{tmp_path}/a.csv"], "nope")
    with pytest.raises(ConfigError, match="--delimiter: `ab` cannot separate columns"):
        find_sources([f"{tmp_path}/a.csv"], delimiter="ab")


def test_same_file_follows_links(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "b.csv").symlink_to("a.csv")
    assert same_file(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    assert not same_file(str(tmp_path / "a.csv"), str(tmp_path / "new.csv"))
    assert same_file("s3://b/a.csv", "s3://b/a.csv")


def test_find_sources_of_a_folder_leave_out_the_storage_in_it(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", make_rows(50))
    run = run_config.parse({"data": {"train": str(tmp_path)}, "storage": str(tmp_path / "runs")})
    prepare.prepare(run)
    assert list((tmp_path / "runs").rglob("*.parquet"))
    assert [source.path for source in prepare.find_sources(run)["train"]] == [path]
    for glob in ("**", "**/*.csv", "*.csv"):
        named = run.model_copy(update={"data": run.data.model_copy(update={"train": (f"{tmp_path}/{glob}",)})})
        assert [source.path for source in prepare.find_sources(named)["train"]] == [path]
    (tmp_path / "link").symlink_to("runs")
    linked = run.model_copy(update={"storage": str(tmp_path / "link")})
    assert [source.path for source in prepare.find_sources(linked)["train"]] == [path]
    shard = next(str(found) for found in (tmp_path / "runs").rglob("train/*.parquet"))
    named = run.model_copy(update={"data": run.data.model_copy(update={"train": (shard,)})})
    assert [source.path for source in prepare.find_sources(named)["train"]] == [shard]


@pytest.mark.parametrize("name", ["b.csv.bz2", "deep/b.jsonl.zip", "b.XLSX", "b.arrow", "b.pq"])
def test_find_sources_of_a_folder_with_rows_of_another_format_raises(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.csv")
    put(tmp_path / "README.md.zip")
    assert len(find_sources([str(tmp_path)])) == 1
    path = put(tmp_path / name)
    with pytest.raises(DataError, match=rf"`{path}`: cannot be read, and its rows would be missing\. Convert it to"):
        find_sources([str(tmp_path)])
    assert len(find_sources([f"{tmp_path}/*.csv"])) == 1
