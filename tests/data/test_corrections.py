"""Corrected labels: matched by text and label, applied by `prepare`, refused where they make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray import cloudpickle

from tests.helpers.data_files import put
from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError, DataError
from txclf.data import corrections, scan, shards
from txclf.data.prepare import find_sources, prepare

HOSTILE = ['a "quoted", text', "=1+1", "line\r\nbreak\nand\ttab", "  spaces  ", "日本 🎉 naïve", "-", "\x1f sep"]


def make_run(
    tmp_path: Path, rows: Any, fixes: Any = None, header: Any = ("text", "label", "corrected"), **data: Any
) -> RunConfig:
    data = {"train": write_csv(tmp_path / "train.csv", rows), **data}
    if fixes is not None:
        data["corrections"] = write_csv(tmp_path / "fixes.csv", fixes, header=list(header))
    tokenizer = {"vocab_size": 300}
    return run_config.parse({"storage": str(tmp_path), "data": data, "tokenizer": tokenizer, "seed": 3})


def labels_by_text(run: RunConfig) -> tuple[dict[str, set[str]], shards.Manifest]:
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    found: dict[str, set[str]] = {}
    for split in manifest.splits:
        table = shards.read_split(folder, manifest, split, ["text", "label"])
        for text, label in zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True):
            found.setdefault(text, set()).add(manifest.labels[label])
    return found, manifest


def test_prepare_applies_corrections_by_text_and_label(tmp_path: Path) -> None:
    rows = [*make_rows(60), *((text, "pos") for text in HOSTILE), ("gone", "neg"), ("kept", "pos")]
    fixes = [*((text, "pos", "neg") for text in HOSTILE), ("gone", "neg", "[drop]"), ("kept", "pos", " ")]
    found, manifest = labels_by_text(make_run(tmp_path, rows, fixes))
    assert [found[text] for text in HOSTILE] == [{"neg"}] * len(HOSTILE)
    assert "gone" not in found
    assert found["kept"] == {"pos"}
    assert manifest.corrections == shards.Corrected(rows=len(HOSTILE) + 1, dropped=1)
    assert sum(split.rows for split in manifest.splits.values()) == len(rows) - 1
    plain = make_run(tmp_path, rows)
    assert prepare(plain) != prepare(make_run(tmp_path, rows, fixes)) != prepare(make_run(tmp_path, rows, fixes[1:]))


def test_prepare_key_of_a_row_survives_a_spreadsheet(tmp_path: Path) -> None:
    rows = [*make_rows(60), ("naïve text;", "pos")]
    key = corrections.key_text(int(corrections.keys(["naïve text;"], [("pos",)])[0]))
    content = f'text;label;corrected;key\r\n"na?ve text;";POS;neg;{key}\r\n'
    fixes = put(tmp_path / "fixes.csv", b"\xef\xbb\xbf" + content.encode())
    found, _ = labels_by_text(make_run(tmp_path, rows, corrections=fixes))
    assert found["naïve text;"] == {"neg"}


def test_prepare_several_files_are_applied_in_order(tmp_path: Path) -> None:
    rows = [*make_rows(60), ("odd", "pos")]
    first = write_csv(tmp_path / "1.csv", [("odd", "pos", "neg")], header=["text", "label", "corrected"])
    second = write_csv(tmp_path / "2.csv", [("odd", "neg", "[drop]")], header=["text", "label", "corrected"])
    assert "odd" not in labels_by_text(make_run(tmp_path, rows, corrections=[first, second]))[0]
    with pytest.raises(DataError, match="no row has the text and label of any correction"):
        prepare(make_run(tmp_path, rows, corrections=[second, first]))


def test_prepare_corrections_of_held_out_files_are_applied(tmp_path: Path) -> None:
    test = write_csv(tmp_path / "test.csv", [("exam", "pos"), ("other", "unseen")])
    fixes = [("exam", "pos", "neg"), ("other", "unseen", "pos")]
    found, manifest = labels_by_text(make_run(tmp_path, make_rows(60), fixes, test=test))
    assert (found["exam"], found["other"]) == ({"neg"}, {"pos"})
    assert manifest.splits["test"].rejected == 0


def test_prepare_a_label_may_vanish_by_corrections(tmp_path: Path) -> None:
    _, manifest = labels_by_text(make_run(tmp_path, [*make_rows(60), ("typo", "pso")], [("typo", "pso", "pos")]))
    assert manifest.labels == ["neg", "pos"]


def test_prepare_unmatched_corrections_are_a_warning(tmp_path: Path) -> None:
    rows = [*make_rows(60), ("odd", "pos")]
    fixes = [("odd", "pos", "neg"), ("nowhere", "pos", "neg")]
    _, manifest = labels_by_text(make_run(tmp_path, rows, fixes))
    (warning,) = manifest.warnings
    assert "1 of 2 corrections match no row" in warning
    assert "fixes.csv`: row 2" in warning


@pytest.mark.parametrize(
    ("fixes", "header", "message"),
    [
        ([("odd", "pos", "nge")], None, "row 1: no training row has the label `nge`. Did you mean `neg`?"),
        ([("odd", "pos", "")], None, "no row has a value in column `corrected`"),
        ([("odd", "pos", "neg"), ("odd", "pos", "[drop]")], None, "row 2: corrects the same text otherwise than"),
        ([("odd", "neg")], ("text", "corrected"), "no column `label` among `text`, `corrected`"),
        ([("odd", "pos", "neg")], ("text", "label", "fixed"), "no column `corrected`"),
        ([("1e5", "neg")], ("key", "corrected"), "no row has the text and label"),
        ([("row-x", "neg")], ("key", "corrected"), "row 1: `row-x` is no key of a row"),
    ],
)
def test_prepare_bad_corrections_are_refused(tmp_path: Path, fixes: Any, header: Any, message: str) -> None:
    run = make_run(tmp_path, [*make_rows(60), ("odd", "pos")], fixes, header or ("text", "label", "corrected"))
    with pytest.raises(DataError) as caught:
        prepare(run)
    assert message in str(caught.value)
    assert not list((tmp_path / "prepared").glob("*/manifest.json"))


def test_prepare_missing_file_of_corrections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv"):
        prepare(make_run(tmp_path, make_rows(60), corrections=str(tmp_path / "nothing.csv")))


def test_corrections_of_label_sets_add_and_remove_labels(tmp_path: Path) -> None:
    rows = [(text, ("a,b", "b", "a,c", "")[number % 4]) for number, (text, _) in enumerate(make_rows(80))]
    rows += [("one", "c,a"), ("two", "b"), ("three", ""), ("four", "a")]
    fixes = [("one", "a,c", "c"), ("two", "b", " [none] "), ("three", "", "a,b"), ("four", "a", "[drop]")]
    run = make_run(tmp_path, rows, fixes)
    run = run_config.with_overrides(run, {"task": "multilabel"})
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    tables = [shards.read_split(folder, manifest, split, ["text", "labels"]) for split in manifest.splits]
    found = {text: labels for table in tables for text, labels in zip(*table.to_pydict().values(), strict=True)}
    assert [found[text] for text in ("one", "two", "three")] == [[2], [], [0, 1]]
    assert "four" not in found


def test_corrections_of_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.corrections"):
        run_config.load(None, ["task=seq2seq", f"data.corrections={tmp_path}/fixes.csv"])


def test_file_task_with_corrections_travels_to_another_process(tmp_path: Path) -> None:
    run = make_run(tmp_path, [*make_rows(20), ("odd", "pos")], [("odd", "pos", "neg")])
    loaded = corrections.load(run, corrections.sources(run.data.corrections or ()))
    sources = find_sources(run)
    tasks = scan.file_tasks(run, sources, "train", labels=None, corrections=loaded)
    (task,) = cloudpickle.loads(cloudpickle.dumps(tasks))  # type: ignore[no-untyped-call]
    table = pa.concat_tables(scan.scan(task))
    assert table["correction"].drop_null().to_pylist() == [0]
    assert table["corrected_rows"].drop_null().to_pylist() == [1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label,corrected\none,pos,\ntwo,neg, \n", False),
        ("text,label,corrected\none,pos,\ntwo,neg,pos\n", True),
        ("text;label;corrected\none;pos;\ntwo;neg;pos\n", True),
        ("text;label;corrected\none;pos;\ntwo;neg;\n", False),
        ("text,label\none,pos\n", True),
        ("", False),
    ],
)
def test_is_filled_in_tells_a_file_that_may_be_replaced(tmp_path: Path, content: str, expected: bool) -> None:
    assert corrections.is_filled_in(put(tmp_path / "suspects.csv", content)) == expected
