"""Raw files to shards: counts, splits, incomplete folders, refused data."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers.files import make_rows, read, write_csv
from tests.helpers.processes import at_once
from txclf.config import run_config as config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError, StorageError
from txclf.data import records, shards
from txclf.data.prepare import _altered, prepare
from txclf.data.scan import FileTask
from txclf.data.sources import Source


def run_config(folder: Path, words: Sequence[str] = (), **data: Any) -> RunConfig:
    settings = {
        "storage": str(folder / "runs"),
        "data": data,
        "tokenizer": {"vocab_size": 400, "max_length": 8, "min_frequency": 1},
    }
    return config.parse(json.loads(json.dumps(settings)) | {"seed": 3}) if not words else config.load(None, words)


def test_prepare_every_row_is_in_exactly_one_split(tmp_path: Path) -> None:
    rows = make_rows(500)
    run = run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows), valid_fraction=0.2)
    folder = prepare(run)
    found = [row for split in ("train", "valid") for row in read(folder, split)]
    manifest = shards.load_manifest(folder)
    assert manifest.labels == ["neg", "pos"]
    assert sorted((row["text"], manifest.labels[row["label"]]) for row in found) == sorted(rows)
    assert all(rows[row["row"] - 1][0] == row["text"] and row["file"] == str(tmp_path / "a.csv") for row in found)
    assert 0.1 < manifest.splits["valid"].rows / 500 < 0.3
    assert [row["key"] for row in read(folder, "train")] == sorted(row["key"] for row in read(folder, "train"))
    assert [row["row"] for row in read(folder, "train")] != sorted(row["row"] for row in read(folder, "train"))


def test_prepare_counts_of_the_manifest_add_up(tmp_path: Path) -> None:
    train = [("one two", "a"), ("one two", "b"), ("one two", "b"), ("three " * 20, "a"), *(make_rows(20))]
    train = [(text, {"pos": "a", "neg": "b"}.get(label, label)) for text, label in train]
    test = [("one two", "a"), ("new words here", "b"), ("x", "never seen"), ("", "a")]
    run = run_config(
        tmp_path,
        train=write_csv(tmp_path / "train.csv", train),
        valid=write_csv(tmp_path / "valid.csv", make_rows(5, seed=1), header=("text", "other")),
        test=write_csv(tmp_path / "test.csv", test),
        on_bad_row="skip",
    )
    with pytest.raises(DataError, match="no column `label`"):
        prepare(run)
    write_csv(tmp_path / "valid.csv", [(text, "a") for text, _ in make_rows(5, seed=1)])
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    assert manifest.conflicting_texts == 1
    splits = manifest.splits
    assert (splits["train"].rows, splits["train"].rejected, splits["train"].duplicates) == (24, 0, 2)
    assert (splits["test"].rows, splits["test"].rejected, splits["test"].read) == (2, 2, 4)
    assert splits["test"].duplicates_of_train == 1
    assert splits["train"].truncated_rows >= 1
    assert 0.0 < splits["train"].truncated_token_share < 1.0
    for split in splits.values():
        assert split.rows == sum(split.label_counts.values()) == sum(split.length_histogram)
        assert split.tokens == sum(shard.tokens for shard in split.shards)
    rejected = [json.loads(line) for line in storage.read_bytes(f"{folder}/rejected.jsonl").decode().splitlines()]
    assert [(row["row"], row["reason"]) for row in rejected] == [
        (3, "label `never seen` is not among the training labels"),
        (4, "no text: `text` missing or blank"),
    ]
    assert sum(manifest.reject_reasons.values()) == 2


def test_prepare_bad_rows_stop_and_name_the_first_twenty(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [*make_rows(10), *[("", "pos")] * 30])
    with pytest.raises(DataError) as caught:
        prepare(run_config(tmp_path, train=path))
    message = str(caught.value)
    assert message.count(f"{path}: row ") == 20
    assert f"{path}: row 11: " in message
    assert "data.on_bad_row=skip" in message
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def test_prepare_unchanged_data_is_reused_and_changed_data_is_not(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", make_rows(50))
    first = prepare(run_config(tmp_path, train=path))
    before = (Path(first) / "manifest.json").stat().st_mtime_ns
    assert prepare(run_config(tmp_path, train=path)) == first
    assert (Path(first) / "manifest.json").stat().st_mtime_ns == before
    assert prepare(run_config(tmp_path, train=path, valid_fraction=0.3)) != first
    write_csv(tmp_path / "a.csv", make_rows(51))
    assert prepare(run_config(tmp_path, train=path)) != first


def test_prepare_incomplete_folder_is_prepared_again(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", make_rows(50))
    folder = prepare(run_config(tmp_path, train=path))
    whole = read(folder, "train")
    Path(folder, "manifest.json").unlink()
    for shard in Path(folder, "train").iterdir():
        shard.write_bytes(b"half")
    Path(folder, "train", "part-ffff.parquet").write_bytes(b"left behind")
    with pytest.raises(DataError, match="preparing was interrupted"):
        shards.load_manifest(folder)
    assert prepare(run_config(tmp_path, train=path)) == folder
    assert read(folder, "train") == whole


def test_prepare_duplicates_stay_in_one_split(tmp_path: Path) -> None:
    rows = [(text, label) for text, label in make_rows(100) for _ in range(3)]
    folder = prepare(run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows), valid_fraction=0.3))
    manifest = shards.load_manifest(folder)
    assert manifest.splits["valid"].duplicates_of_train == 0
    assert manifest.splits["train"].duplicates == manifest.splits["train"].rows * 2 // 3


def test_prepare_many_shards_have_the_same_order_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "a.csv", make_rows(300))
    one = prepare(run_config(tmp_path / "one", train=path))
    monkeypatch.setattr("txclf.data.prepare.SHARD_BYTES", 1000)
    many = prepare(run_config(tmp_path / "many", train=path))
    assert len(shards.load_manifest(one).splits["train"].shards) == 1
    assert len(shards.load_manifest(many).splits["train"].shards) > 5
    assert read(one, "train") == read(many, "train")
    assert read(one, "valid") == read(many, "valid")


def test_prepare_other_seed_changes_split_and_order(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", make_rows(100))
    words = [f"data.train={path}", f"storage={tmp_path}/runs", "tokenizer.min_frequency=1"]
    one, other = (prepare(config.load(None, [*words, f"seed={seed}"])) for seed in (1, 2))
    assert [row["row"] for row in read(one, "train")] != [row["row"] for row in read(other, "train")]


def test_prepare_several_files_and_text_columns_are_read(tmp_path: Path) -> None:
    for name, rows in (("a", make_rows(30)), ("b", make_rows(30, seed=1))):
        write_csv(
            tmp_path / f"{name}.csv", [(f"title {i}", *row) for i, row in enumerate(rows)], ["t", "text", "label"]
        )
    run = run_config(tmp_path, train=str(tmp_path / "*.csv"), text=["t", "text"])
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    assert sum(split.rows for split in manifest.splits.values()) == 60
    assert {row["file"] for row in read(folder, "train")} == {str(tmp_path / "a.csv"), str(tmp_path / "b.csv")}
    assert read(folder, "train")[0]["text"].startswith("title ")


def test_prepare_integer_labels_are_in_numeric_order(tmp_path: Path) -> None:
    rows = [(text, str(number % 11)) for number, (text, _) in enumerate(make_rows(200))]
    manifest = shards.load_manifest(prepare(run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows))))
    assert manifest.labels == [str(number) for number in range(11)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("some text", "a")] * 10, "every row has the label `a`"),
        ([(f"text {i}", str(i)) for i in range(50)], "looks like an id or a measurement"),
        ([], "no row in"),
    ],
)
def test_prepare_labels_that_cannot_be_learned_are_refused(
    tmp_path: Path, rows: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows)))


def test_prepare_fractional_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"t {i}", "label": (i % 4) / 2}) + "\n" for i in range(40)))
    with pytest.raises(DataError, match="numbers with fractions"):
        prepare(run_config(tmp_path, train=str(path)))


def test_prepare_labels_that_surprise_are_in_the_manifest(tmp_path: Path) -> None:
    rows = make_rows(200)
    lines: list[dict[str, Any]] = [{"text": text, "label": label} for text, label in rows]
    lines += [{"text": f"more {i}", "label": ["Pos", False][i % 2]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "one", "label": "pos"}) + "\n")
    files: dict[str, Any] = {"train": str(tmp_path / "a.jsonl"), "valid": str(tmp_path / "b.jsonl")}
    alike, booleans, *unseen = shards.load_manifest(prepare(run_config(tmp_path, **files))).warnings
    assert alike.startswith("`Pos`, `pos`: labels that differ only in case")
    assert booleans.startswith("`false`: booleans among labels of other types")
    assert [warning.partition(":")[0] for warning in unseen] == ["`Pos`", "`false`", "`neg`"]
    assert all("no validation row, but" in warning for warning in unseen)
    held_out = next(i for i in range(100) if shards.validation_rows(shards.text_hashes([(f"rare {i}",)]), 3, 0.1)[0])
    train = write_csv(tmp_path / "c.csv", [*rows, (f"rare {held_out}", "rare")])
    (rare,) = shards.load_manifest(prepare(run_config(tmp_path, train=train))).warnings
    assert rare.startswith("`rare`: no training row. The 1 row(s) of this class are held out")


def test_prepare_file_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    path = Path(write_csv(tmp_path / "a.csv", make_rows(200)))
    other = write_csv(tmp_path / "b.csv", [(f"text {i}", "ab"[i % 2]) for i in range(300)])

    def replace(stage: str, _: int) -> None:
        if "tokenizer" in stage and Path(other).exists():
            os.replace(other, path)

    with pytest.raises(DataError, match=r"a\.csv`: changed while it was read"):
        prepare(run_config(tmp_path, train=str(path)), replace)
    assert not [name for name in os.listdir(tmp_path / "runs" / "prepared") if not name.startswith(".")]


def test_prepare_empty_part_files_have_no_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "part-0.csv", make_rows(100))
    for name in ("part-1.csv", "part-2.jsonl", "part-3.parquet"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "part-4.csv.gz").write_bytes(gzip.compress(b""))
    manifest = shards.load_manifest(prepare(run_config(tmp_path, train=str(tmp_path / "part-*"))))
    assert sum(split.rows for split in manifest.splits.values()) == 100


def test_prepare_shards_of_a_small_file_with_long_texts_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("txclf.data.prepare.SHARD_BYTES", 2**16)
    rows = [(f"{'long text ' * 500} {i}", "ab"[i % 2]) for i in range(100)]
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(Path(write_csv(tmp_path / "a.csv", rows)).read_bytes()))
    manifest = shards.load_manifest(prepare(run_config(tmp_path, train=str(path))))
    assert len(manifest.splits["train"].shards) > 3
    assert path.stat().st_size < 2**16


def test_prepare_missing_settings_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`data\.train`: not set"):
        prepare(run_config(tmp_path))
    with pytest.raises(DataError, match=r"nothing\.csv"):
        prepare(run_config(tmp_path, train=str(tmp_path / "nothing.csv")))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"no row in .*empty\.csv: no bytes, or only a header"):
        prepare(run_config(tmp_path, train=str(tmp_path / "empty.csv")))


def test_prepare_shards_are_plain_parquet(tmp_path: Path) -> None:
    folder = prepare(run_config(tmp_path, train=write_csv(tmp_path / "a.csv", make_rows(50))))
    (file,) = Path(folder, "train").iterdir()
    assert pq.read_schema(file).names == shards.SCHEMA.names


def test_prepare_at_once_builds_the_data_once_and_the_others_wait(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", make_rows(20_000))
    words = [f"storage={tmp_path}/runs", f"data.train={tmp_path}/a.csv", "tokenizer.vocab_size=400"]
    imports = "from txclf.config import run_config\nfrom txclf.data.prepare import prepare"
    call = "print(prepare(run_config.load(None, sys.argv[1:]), lambda stage, rows: print(stage)))"
    results = at_once(imports, call, [words] * 3)
    assert [code for code, _, _ in results] == [0, 0, 0], results
    folders = {out.splitlines()[-1] for _, out, _ in results}
    assert len(folders) == 1
    built = [out for _, out, _ in results if "tokenized" in out]
    waited = [out for _, out, _ in results if re.search(r"waiting for process \d+ on `.*`, which prepares", out)]
    assert (len(built), len(waited)) == (1, 2)
    assert [path.name for path in (tmp_path / "runs" / "prepared").iterdir()] == [Path(folders.pop()).name]


def test_prepare_after_a_kill_leaves_nothing_of_the_first_attempt(tmp_path: Path) -> None:
    run = run_config(tmp_path, train=write_csv(tmp_path / "a.csv", make_rows(500)))

    class Killed(BaseException):
        """Ends the process in which it is raised."""

    def kill(stage: str, rows: int) -> None:
        if stage == "tokenized":
            raise Killed

    with pytest.raises(Killed):
        prepare(run, kill)
    prepared = tmp_path / "runs" / "prepared"
    assert list(prepared.iterdir()) == []
    folder = Path(prepare(run))
    leftover = prepared / f".{folder.name}" / "0123" / "train"
    leftover.mkdir(parents=True)
    (leftover / "part-0.parquet").write_bytes(b"half")
    shutil.rmtree(folder)
    assert prepare(run) == str(folder)
    assert list(prepared.iterdir()) == [folder]


def test_prepare_taken_over_by_another_process_raises(tmp_path: Path) -> None:
    run = run_config(tmp_path, train=write_csv(tmp_path / "a.csv", make_rows(500)))

    def taken_over(stage: str, rows: int) -> None:
        for path in (tmp_path / "runs" / "prepared").glob(".*/lease.json"):
            path.unlink()

    with pytest.raises(StorageError, match="stood still for so long that another process took its work over"):
        prepare(run, taken_over)
    assert not list((tmp_path / "runs" / "prepared").glob("*/manifest.json"))


def test_prepare_encoding_and_delimiter_give_the_same_rows(tmp_path: Path) -> None:
    rows = [(f"{text} schön", label) for text, label in make_rows(60)]
    plain = prepare(run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows)))
    content = Path(tmp_path / "a.csv").read_text().replace(",", ";")
    (tmp_path / "b.csv").write_bytes(content.encode("utf-16"))
    run = run_config(tmp_path, train=f"{tmp_path}/b.csv", encoding="utf-16", delimiter=";")
    folder = prepare(run)
    assert [row["text"] for row in read(folder, "train")] == [row["text"] for row in read(plain, "train")]
    assert prepare(run_config(tmp_path, train=f"{tmp_path}/a.csv", encoding="latin-1")) != plain


def test_prepare_skipped_rows_in_another_encoding_are_a_warning(tmp_path: Path) -> None:
    content = "".join(f"text {i} {'ä' * (i % 3 == 0)},{'xy'[i % 2]}\n" for i in range(60))
    (tmp_path / "a.csv").write_bytes(f"text,label\n{content}".encode("latin-1"))
    folder = prepare(run_config(tmp_path, train=f"{tmp_path}/a.csv", on_bad_row="skip"))
    (warning,) = shards.load_manifest(folder).warnings
    assert warning.startswith("`data.train`: skipped rows. It looks like latin-1: set `data.encoding: latin-1`")


def texts_of(folder: str, split: str) -> set[str]:
    return {row["text"] for row in read(folder, split)}


def test_prepare_test_fraction_auto_holds_out_rows_of_large_data(tmp_path: Path) -> None:
    rows = [*make_rows(1_100), *make_rows(300)]  # 300 texts occur twice
    folder = prepare(run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows)))
    splits = {split: texts_of(folder, split) for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values()))
    manifest = shards.load_manifest(folder)
    assert sum(split.rows for split in manifest.splits.values()) == 1_400
    assert 0.07 < manifest.splits["test"].rows / 1_400 < 0.13
    assert 0.07 < manifest.splits["valid"].rows / 1_260 < 0.13
    assert manifest.splits["test"].duplicates_of_train == 0
    small = prepare(run_config(tmp_path, train=write_csv(tmp_path / "b.csv", rows[:999])))
    assert set(shards.load_manifest(small).splits) == {"train", "valid"}


def test_prepare_test_split_is_the_same_for_every_seed_and_file(tmp_path: Path) -> None:
    rows = make_rows(400)
    one = run_config(tmp_path, train=write_csv(tmp_path / "a.csv", rows), test_fraction=0.2)
    other = one.model_copy(update={"seed": 4})
    added = run_config(
        tmp_path, train=write_csv(tmp_path / "b.csv", [*make_rows(50, seed=9), *rows]), test_fraction=0.2
    )
    first, second, third = (prepare(run) for run in (one, other, added))
    assert texts_of(first, "test") == texts_of(second, "test") <= texts_of(third, "test")
    assert texts_of(first, "valid") != texts_of(second, "valid")


def test_prepare_test_fraction_with_validation_files_takes_training_rows(tmp_path: Path) -> None:
    files = {"train": write_csv(tmp_path / "a.csv", make_rows(200))}
    files["valid"] = write_csv(tmp_path / "b.csv", [(f"other {text}", label) for text, label in make_rows(30)])
    manifest = shards.load_manifest(prepare(run_config(tmp_path, **files, test_fraction=0.3)))
    assert manifest.splits["valid"].rows == 30
    assert manifest.splits["train"].rows + manifest.splits["test"].rows == 200
    assert 30 < manifest.splits["test"].rows < 90


def test_prepare_test_fraction_is_without_effect_next_to_test_files(tmp_path: Path) -> None:
    paths = {name: write_csv(tmp_path / f"{name}.csv", make_rows(60)) for name in ("train", "test")}
    assert prepare(run_config(tmp_path, **paths)) == prepare(run_config(tmp_path, **paths, test_fraction=0.5))


def test_prepare_test_fraction_that_leaves_no_test_row_is_refused(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", make_rows(30))
    with pytest.raises(DataError, match=r"`data\.test_fraction`: 1e-06 leaves no row for the test split\. Set another"):
        prepare(run_config(tmp_path, train=train, test_fraction=1e-6))
    same = [(f"text {number % 7}", "ab"[number % 2]) for number in range(1_001)]
    paths = {"train": write_csv(tmp_path / "b.csv", same), "valid": write_csv(tmp_path / "c.csv", same[:20])}
    folder = prepare(run_config(tmp_path, **paths))  # too few texts for the automatic fraction
    assert set(shards.load_manifest(folder).splits) == {"train", "valid"}


def test_prepare_tokenizer_does_not_see_the_test_split(tmp_path: Path) -> None:
    rows = [(f"common {'zq' * 3 if number % 2 else 'other'}{number}", "ab"[number % 2]) for number in range(1_200)]
    train = write_csv(tmp_path / "a.csv", rows)
    folder = prepare(run_config(tmp_path, train=train))
    left_out = texts_of(folder, "test") | texts_of(folder, "valid")
    seen = write_csv(tmp_path / "b.csv", [row for row in rows if row[0] not in left_out])
    valid = write_csv(tmp_path / "c.csv", [row for row in rows if row[0] in left_out])
    other = prepare(run_config(tmp_path, train=seen, valid=valid, test_fraction=0))
    assert Path(folder, "tokenizer.json").read_text() == Path(other, "tokenizer.json").read_text()


def test_altered_copies_of_each_batch_have_random_numbers_of_their_own(tmp_path: Path) -> None:
    run = config.parse({"data": {"train": "train", "altered_copies": 4}, "distill": {"teacher": "model"}})
    task = FileTask(run, "train", Source("train", "text"), 0, copies=4)
    # In a folder of text files, each row is the first of its file.
    rows = records.Rows([("one two three four five six seven",)] * 8, ["a"] * 8, [], [1] * 8, ["a/1.txt"] * 8, set())
    (_, first), (_, second), (_, again) = (_altered(task, range(8), rows, done) for done in (0, 8, 0))
    assert first == again
    assert first != second
