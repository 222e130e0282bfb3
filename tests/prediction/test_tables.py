"""Predictions for tables in memory are those for the file of the same rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.prediction import with_quantiles
from tests.helpers.serving import untrained
from tests.helpers.tables import Stream
from txclf.core.errors import ConfigError, DataError
from txclf.prediction import tables
from txclf.prediction.predict import predict

FRAME = pd.DataFrame({"text": ["the fox", None, "a dog", " "], "label": [1, 2, 3, 4]}, index=list("abcd"))


def test_predict_table_adds_what_the_prediction_of_the_file_adds(
    tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FRAME.to_parquet(tmp_path / "in.parquet", index=False)
    predict(tiny_bundle, [str(tmp_path / "in.parquet")], out=str(tmp_path / "out.parquet"), probabilities=True)
    expected = pq.read_table(tmp_path / "out.parquet")
    monkeypatch.setattr(tables, "CHUNK_ROWS", 3)
    done: list[int] = []
    found = tables.predict_table(tiny_bundle, FRAME, True, None, done.append)
    assert list(found.index) == list("abcd")
    assert pa.Table.from_pandas(found, preserve_index=False).to_pylist() == expected.to_pylist()
    assert done == [3, 4]
    stream = tables.predict_table(tiny_bundle, Stream(pa.Table.from_pandas(FRAME)), True, None, done.append)
    assert stream.select(expected.column_names).to_pylist() == expected.to_pylist()


def test_predict_table_with_coverage_adds_lists(tiny_bundle: str, tmp_path: Path) -> None:
    bundle = with_quantiles(tiny_bundle, tmp_path, [0.2] * 9)
    FRAME.to_parquet(tmp_path / "in.parquet", index=False)
    predict(bundle, [str(tmp_path / "in.parquet")], out=str(tmp_path / "out.parquet"), coverage=0.9)
    expected = pq.read_table(tmp_path / "out.parquet")
    assert expected.schema.field("labels_in_set").type == pa.list_(pa.string())
    found = tables.predict_table(bundle, pa.Table.from_pandas(FRAME), False, None, lambda rows: None, 0.9)
    assert found["labels_in_set"].to_pylist() == expected["labels_in_set"].to_pylist()


def test_predict_table_multilabel_gives_lists_and_other_text_columns(tmp_path: Path) -> None:
    bundle = untrained(tmp_path, task="multilabel")
    table = pa.table({"review": ["the fox"]})
    found = tables.predict_table(bundle, table, False, ["review"], lambda rows: None)
    assert found.schema.field("labels").type == pa.list_(pa.string())


def test_predict_table_without_rows_has_the_columns(tiny_bundle: str) -> None:
    found = tables.predict_table(tiny_bundle, FRAME[:0], False, None, lambda rows: None)
    assert list(found.columns) == ["text", "label", "predicted_label", "probability"]
    assert found.empty


def test_predict_table_without_its_columns_is_refused(tiny_bundle: str) -> None:
    with pytest.raises(DataError, match="`inputs`: no column `text`, it has `label`"):
        tables.predict_table(tiny_bundle, FRAME[["label"]], False, None, lambda rows: None)
    with pytest.raises(ConfigError, match="the model reads 1"):
        tables.predict_table(tiny_bundle, FRAME, False, ["text", "label"], lambda rows: None)
    with pytest.raises(ConfigError, match="found `Series` of pandas"):
        tables.predict_table(tiny_bundle, FRAME["text"], False, None, lambda rows: None)
