"""Tables in memory as data: they become Parquet files, which are read like any other file.

A table is a pandas or Polars DataFrame, a `Dataset` of Hugging Face, an Arrow table, or any other object with the Arrow
stream interface (`__arrow_c_stream__`). None of these packages is imported here: an object of a package that this
process has not imported does not exist.

The name of a file is the hash of its rows, so the same table is the same file: preparing it again does nothing, and an
interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.text import listed, shown
from txclf.data import writers
from txclf.data.labels import named

FOLDER = "tables"
"""Folder of the files, in the storage or, for rows that are scored, in the run folder."""
GROUP_ROWS = 65_536
"""Rows per row group of a file."""
SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "test": "test", "unlabelled": "unlabelled"}
"""Key of `data` by the name of a split in a mapping such as `DatasetDict`."""
_EXPECTED = "Pass a path, a pandas or Polars DataFrame, a Dataset or an Arrow table."


def with_data(run: RunConfig, data: Any, valid: Any = None, test: Any = None) -> RunConfig:
    """Return a run with the given data as its files; tables are stored in its storage first."""
    folder = storage.join(run.storage, FOLDER)
    given = by_split(data, valid, test).items()
    files = {f"data.{split}": paths(value, run, folder, f"data.{split}") for split, value in given}
    return run_config.with_overrides(run, files) if files else run


def is_table(value: object) -> bool:
    """Return True for a table in memory."""
    return hasattr(value, "__arrow_c_stream__") or _is_pandas(value) or _is_dataset(value)


def by_split(data: Any, valid: Any = None, test: Any = None) -> dict[str, Any]:
    """Return the given data by split. `data` is the training data, or a mapping from the name of a split to its data.

    Raises `ConfigError` for an unknown split, or one that is given twice.
    """
    named = list(data.items()) if isinstance(data, Mapping) else [("train", data)]
    found: dict[str, Any] = {}
    for name, value in [*named, ("valid", valid), ("test", test)]:
        if value is None:
            continue
        if name not in SPLITS:
            raise ConfigError(
                f"`data`: unknown split `{shown(name)}`. A mapping is read as splits, with the names "
                f"{', '.join(SPLITS)}. Pass `pandas.DataFrame(columns)` for a mapping of columns."
            )
        if SPLITS[name] in found:
            raise ConfigError(f"`{SPLITS[name]}`: given twice, also in `data`. Remove one of them.")
        found[SPLITS[name]] = value
    return found


def paths(data: Any, run: RunConfig, folder: str, where: str, *, labelled: bool = True) -> list[str]:
    """Return data as paths: a table is stored in `folder`, with the columns that the run reads.

    `where` names the argument in messages, `labelled` says whether the rows have answers. Raises `ConfigError` for
    values that are no data, `DataError` for a table without these columns, or whose columns Arrow cannot hold.
    """
    if is_table(data):
        has_answer = labelled and where != "data.unlabelled"
        answer = [getattr(run.data, run.task_spec.answer_key)] if has_answer else []
        return [store(columns(data, [*run.data.text, *answer], where), folder)]
    return file_paths(data, where)


def file_paths(values: Any, where: str) -> list[str]:
    """Return a path or several paths as a list of strings. Raises `ConfigError` for other values."""
    several = [values] if isinstance(values, str | os.PathLike) else values
    if not isinstance(several, Sequence) or not all(isinstance(value, str | os.PathLike) for value in several):
        raise ConfigError(f"`{where}`: found {_kind(values)}. {_EXPECTED}")
    return list(map(storage.path_text, several))


def names(table: Any) -> list[str]:
    """Return the names of the columns of a table."""
    return list(map(str, table.columns if _is_pandas(table) or _is_polars(table) else table.column_names))


def opened(table: Any, where: str) -> Any:
    """Return a table that can be read several times. Raises `ConfigError` for a stream of something else than rows."""
    if _is_pandas(table) or _is_polars(table) or _is_dataset(table):
        return table
    try:
        return pa.table(table)
    except (pa.ArrowException, TypeError, ValueError):
        raise ConfigError(f"`{where}`: found {_kind(table)}, which has no columns. {_EXPECTED}") from None


def columns(table: Any, wanted: Sequence[str], where: str) -> pa.Table:
    """Return some columns of a table in Arrow's types. The index of a DataFrame is no column.

    Raises `ConfigError` for an object without columns, and `DataError` if a column is missing or Arrow cannot hold it.
    """
    table = opened(table, where)
    known, wanted = names(table), list(dict.fromkeys(wanted))
    for name in wanted:
        if known.count(name) > 1:
            raise DataError(f"`{where}`: two columns are called `{shown(name)}`. Rename one of them.")
        if name not in known:
            raise DataError(
                f"`{where}`: no column `{shown(name)}` among {listed(known)}. "
                "Set `data.text` or `data.label` to a column of the table."
            )
    try:
        if _is_pandas(table):
            chosen = table.iloc[:, [known.index(name) for name in wanted]]
            found = pa.Table.from_pandas(chosen, preserve_index=False)
        elif _is_polars(table):  # whose newest types have views of strings, which Parquet files cannot hold
            found = table.select(wanted).to_arrow(compat_level=sys.modules["polars"].CompatLevel.oldest())
        elif _is_dataset(table):
            found = _with_class_names(table.select_columns(wanted).with_format("arrow")[:], table.features)
        else:
            found = table.select(wanted)
        return pa.Table.from_arrays(found.columns, names=wanted)  # without metadata, which may differ by process
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"`{where}`: a column cannot be read: {error}. Give its values one type.") from error


def store(table: pa.Table, folder: str) -> str:
    """Write a table to a Parquet file in a folder, unless it is there already, and return the path."""
    with tempfile.TemporaryFile(prefix="txclf-table-") as file:
        pq.write_table(table.combine_chunks(), file, row_group_size=GROUP_ROWS)
        file.seek(0)
        path = storage.join(folder, f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.parquet")
        if not storage.exists(path):
            storage.require_writable(folder)
            file.seek(0)
            with writers.atomic_stream(path, None) as stream:
                shutil.copyfileobj(file, stream)
    return path


def extended(table: Any, added: pa.Table) -> Any:
    """Return a table of the same kind with more columns; an Arrow table for kinds that are not known."""
    if _is_pandas(table):
        return table.assign(**{name: added[name].to_pylist() for name in added.column_names})
    if _is_polars(table):
        return table.hstack(sys.modules["polars"].from_arrow(added))
    if _is_dataset(table):
        for name in added.column_names:
            table = table.add_column(name, added[name].to_pylist())
        return table
    table = opened(table, "table")
    for name in added.column_names:
        table = table.append_column(name, added[name])
    return table


def _with_class_names(table: pa.Table, features: Mapping[str, Any]) -> pa.Table:
    """Return a table whose `ClassLabel` columns hold names instead of numbers; -1 is a row without a label."""
    for number, name in enumerate(table.column_names):
        feature, column = features[name], table[name]
        is_list = hasattr(feature, "feature")
        labels = getattr(feature.feature if is_list else feature, "names", None)
        if labels is None:
            continue
        kind = pa.list_(pa.string()) if is_list else pa.string()
        table = table.set_column(number, name, pa.array(named(column.to_pylist(), labels), kind))
    return table


def _is_pandas(value: object) -> bool:
    return _is_a(value, "pandas", "DataFrame")


def _is_polars(value: object) -> bool:
    return _is_a(value, "polars", "DataFrame")


def _is_dataset(value: object) -> bool:
    return _is_a(value, "datasets", "Dataset")


def _is_a(value: object, package: str, name: str) -> bool:
    """Return True for an instance of a class of a package that may not be installed."""
    kind = getattr(sys.modules.get(package), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _kind(value: object) -> str:
    package = type(value).__module__.partition(".")[0]
    return f"`{type(value).__name__}`" + ("" if package == "builtins" else f" of {package}")
