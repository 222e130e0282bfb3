"""Tables in memory: recognised without their packages, stored by the hash of their rows, extended in their kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.tables import Stream
from txclf import ConfigError, DataError
from txclf.config import run_config
from txclf.data import tables
from txclf.data.records import read_rows
from txclf.data.sources import find_sources

FRAME = pd.DataFrame(
    {
        "text": ["a b", "c", None],
        "label": pd.Categorical([3, 1, 3]),
        "is_new": [True, False, True],
        "tags": [["x"], [], ["x", "y"]],
        "other": [object(), 1, "two"],
    },
    index=[7, 8, 9],
)


def run_with(**data: Any) -> run_config.RunConfig:
    return run_config.parse({"data": data})


def test_columns_of_a_frame_have_its_values_without_the_index() -> None:
    found = tables.columns(FRAME, ["text", "label", "is_new", "tags", "text"], "data")
    assert found.column_names == ["text", "label", "is_new", "tags"]
    assert found.to_pydict() == {
        "text": ["a b", "c", None],
        "label": [3, 1, 3],
        "is_new": [True, False, True],
        "tags": [["x"], [], ["x", "y"]],
    }
    assert found.schema.metadata is None


def test_columns_of_a_stream_are_those_of_its_table() -> None:
    table = pa.table({"text": ["a"], "label": pa.array(["x"]).dictionary_encode()})
    assert tables.is_table(Stream(table))
    assert tables.columns(Stream(table), ["label"], "data").to_pydict() == {"label": ["x"]}


@pytest.mark.parametrize("value", [["a"], "a.csv", {"text": ["a"]}, None, 3])
def test_other_values_are_no_tables(value: object) -> None:
    assert not tables.is_table(value)


def test_columns_name_a_missing_a_repeated_and_a_mixed_column() -> None:
    with pytest.raises(DataError, match=r"`data.train`: no column `label` among `text`\. Set `data.text`"):
        tables.columns(FRAME[["text"]], ["text", "label"], "data.train")
    twice = pd.concat([FRAME[["text"]], FRAME[["text"]]], axis=1)
    with pytest.raises(DataError, match="two columns are called `text`"):
        tables.columns(twice, ["text"], "data.train")
    with pytest.raises(DataError, match=r"a column cannot be read: .*Give its values one type"):
        tables.columns(FRAME, ["other"], "data.train")
    with pytest.raises(ConfigError, match="found `Series` of pandas, which has no columns"):
        tables.columns(FRAME["text"], ["text"], "data.train")


def test_store_same_rows_same_file_which_is_written_once(tmp_path: Path) -> None:
    table = tables.columns(FRAME, ["text", "label"], "data")
    path = tables.store(table, str(tmp_path / "tables"))
    written = Path(path).stat().st_mtime_ns
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert tables.store(halves, str(tmp_path / "tables")) == path
    assert Path(path).stat().st_mtime_ns == written
    assert tables.store(table.slice(1), str(tmp_path / "tables")) != path
    assert pq.read_table(path).to_pydict() == table.to_pydict()
    assert len(list((tmp_path / "tables").iterdir())) == 2


def test_paths_of_a_table_are_a_file_with_the_columns_of_the_run(tmp_path: Path) -> None:
    (path,) = tables.paths(FRAME, run_with(), str(tmp_path), "data.train")
    assert pq.read_schema(path).names == ["text", "label"]
    (rows, rejects) = next(iter(read_rows(find_sources([path])[0], ["text"], "label")))
    assert (rows.texts, rows.labels) == ([("a b",), ("c",)], ["3", "1"])
    assert [(reject.row, reject.reason) for reject in rejects] == [(3, "no text: `text` missing or blank")]
    (path,) = tables.paths(FRAME[["text"]], run_with(), str(tmp_path), "data.unlabelled")
    assert pq.read_schema(path).names == ["text"]


def test_paths_of_paths_are_strings_and_other_values_are_errors(tmp_path: Path) -> None:
    assert tables.paths(tmp_path / "a.csv", run_with(), "", "data") == [str(tmp_path / "a.csv")]
    assert tables.paths(["a.csv", "b.csv"], run_with(), "", "data") == ["a.csv", "b.csv"]
    for value, kind in ((["a.csv", FRAME], "list"), (3, "int"), (b"a.csv", "bytes")):
        with pytest.raises(ConfigError, match=f"`data`: found `{kind}`. Pass a path, a pandas or Polars DataFrame"):
            tables.paths(value, run_with(), "", "data")


def test_by_split_takes_one_table_or_a_mapping() -> None:
    assert tables.by_split("a", valid="b") == {"train": "a", "valid": "b"}
    assert tables.by_split({"train": "a", "validation": "b"}, test="c") == {"train": "a", "valid": "b", "test": "c"}
    with pytest.raises(ConfigError, match="`data`: unknown split `text`"):
        tables.by_split({"text": ["a"], "label": ["b"]})
    with pytest.raises(ConfigError, match="`test`: given twice"):
        tables.by_split({"train": "a", "test": "b"}, test="c")


def test_extended_keeps_the_kind_and_the_index() -> None:
    added = pa.table({"answer": ["x", None, "y"], "share": [0.5, None, 1.0]})
    frame = tables.extended(FRAME, added)
    assert frame.index.tolist() == [7, 8, 9]
    assert frame["other"].tolist() == FRAME["other"].tolist()
    assert frame["answer"].isna().tolist() == [False, True, False]
    assert frame["share"].dtype == "float64"
    table = pa.table({"text": ["a", "b", "c"]})
    for value in (table, Stream(table)):
        assert tables.extended(value, added).to_pydict() == {**table.to_pydict(), **added.to_pydict()}


def test_polars_frames_are_read_and_extended() -> None:
    polars = pytest.importorskip("polars")
    kinds = {"label": polars.Categorical, "text": polars.String}
    frame = polars.DataFrame({"text": ["a", None], "label": ["x", "y"]}, schema_overrides=kinds)
    assert tables.columns(frame, ["text", "label"], "data").to_pydict() == {"text": ["a", None], "label": ["x", "y"]}
    assert isinstance(tables.extended(frame, pa.table({"answer": ["x", None]})), polars.DataFrame)
    with pytest.raises(ConfigError, match="found `LazyFrame` of polars"):
        tables.paths(frame.lazy(), run_with(), "", "data")


def test_datasets_are_read_in_their_order_with_the_names_of_classes() -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(text=datasets.Value("string"), label=names, tags=datasets.Sequence(names))
    columns = {"text": ["a", "b", "c"], "label": [0, 1, -1], "tags": [[1, 0], [], [0]]}
    dataset = datasets.Dataset.from_dict(columns, features=features).select([2, 0])
    assert tables.columns(dataset, ["text", "label", "tags"], "data").to_pydict() == {
        "text": ["c", "a"],
        "label": [None, "neg"],
        "tags": [["neg"], ["pos", "neg"]],
    }
    assert tables.extended(dataset, pa.table({"answer": ["x", None]}))[:]["answer"] == ["x", None]
    with pytest.raises(ConfigError, match="found `IterableDataset` of datasets"):
        tables.paths(dataset.to_iterable_dataset(), run_with(), "", "data")


def test_the_module_imports_no_package_of_tables() -> None:
    code = "import sys, txclf.data.tables; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"pandas", "polars", "datasets", "torch"} & set(loaded)
