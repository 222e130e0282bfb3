"""`txclf curve`: what more labelled rows would bring, from the same run on parts of its training rows.

    <run>/curve/data/valid.parquet, 500.parquet, …    the validation rows, and nested parts of the training rows
    <run>/curve/500/, 1000/, …                        a run on each part, an ordinary run folder
    <run>/curve/curve.json                            the scores on the validation rows, and what they forecast

Errors fall with the number of rows as a power law (arXiv:1712.00409): a line through their logarithms forecasts them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t as student_t

from txclf.config import recipes, run_config
from txclf.config.dotted import set_dotted
from txclf.config.run_config import RunConfig
from txclf.core import html_table, storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.text import listed
from txclf.data import shards
from txclf.evaluation.evaluate import EVALUATORS, Evaluation, finished

FOLDER, RESULT = "curve", "curve.json"
MAX_ROWS = 1_000_000
"""Max training rows of which parts are made: the first ones, which are drawn at random."""
MIN_PER_LABEL = 2
"""Minimum rows of a part per label, on average."""
MIN_ROWS = 32
"""Minimum rows of a part."""
FORECASTS = (2, 4)
"""Factors of the training rows that are forecast."""


class Plan(NamedTuple):
    """A finished run, and the runs on parts of its training rows."""

    run: RunConfig
    prepared: str
    folder: str
    valid: str
    """File with the validation rows."""
    valid_rows: int
    rows: int
    """Training rows of the run itself."""
    parts: dict[int, RunConfig]
    """The runs to train, by their number of rows, ascending."""


class Curve(dict[str, Any]):
    """Content of `curve.json`: a mapping that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        """Return the points and the forecast as a table."""
        points = [[point["rows"], point[self["score"]], point["loss"]] for point in self["points"]]
        forecast = [[f"{one['rows']:,} (forecast)", one[self["score"]], None] for one in self["forecast"]]
        return html_table.table("Learning curve", [*points, *forecast], ["training rows", self["score"], "loss"])


def plan(run_folder: str, points: int = 4) -> Plan:
    """Write the parts of the training rows of a finished run, and return the runs that train on them.

    The parts have a half, a quarter … of the rows, `points` in all. A part contains the smaller ones, and each has a
    row of every label that the training rows have. Parts with fewer rows than are useful, or than a step of the run
    needs, are left out, and so are validation rows with other labels.

    Raises `ConfigError` if the folder is not a finished run that classifies and has validation rows, `DataError` if it
    has too few training rows.
    """
    run, prepared = finished(run_folder)
    if points < 1:
        raise ConfigError(f"`points`: expected 1 or more, found {points}. Pass 4, for example.")
    if not run.task_spec.has_labels:
        raise ConfigError(f"`{run_folder}`: `task: {run.task}` has no labels. Pass a run that classifies.")
    if run.train.train_on_valid:
        raise ConfigError(
            f"`{run_folder}`: trained on its validation rows too, so none are left to score. Train it with "
            "`train.train_on_valid=false`."
        )
    if run.distill.teacher is not None:
        raise ConfigError(
            f"`{run_folder}`: `distill.teacher` has seen all rows, so runs on parts of them would score too high. Pass "
            "the run of the teacher."
        )
    manifest = shards.load_manifest(prepared)
    rows = manifest.splits["train"].rows
    least = max(MIN_ROWS, MIN_PER_LABEL * len(manifest.labels))
    sizes = [size for size in (min(rows, MAX_ROWS) >> halvings for halvings in range(points, 0, -1)) if size >= least]
    if not sizes:
        raise DataError(
            f"`{run_folder}`: {rows:,} training rows are too few: a half has to have {least:,}. Label more rows."
        )
    folder = storage.join(storage.absolute(run_folder), FOLDER)
    train, valid = (_table(run, prepared, manifest, split) for split in ("train", "valid"))
    order, known = _nested(train, run, len(manifest.labels))
    labels = valid[run.data.label].to_pylist()
    answers = [set(label) if run.task_spec.is_multilabel else {label} for label in labels]
    valid = valid.filter(pa.array([answer <= known for answer in answers], pa.bool_()))
    settings = recipes.without_settled(run, rows, len(manifest.labels))
    parts = {size: _part(settings, folder, size) for size in sizes}
    parts = {size: part for size, part in parts.items() if _holds_a_step(part, size, len(manifest.labels))}
    if not parts:
        raise DataError(f"`{run_folder}`: a half of its rows is less than a step of the run needs. Label more rows.")
    for size, part in parts.items():
        _write_part(part, train.take(pa.array(np.sort(order[:size]))))
    path = storage.join(folder, "data", "valid.parquet")
    storage.write_bytes(path, _parquet(valid))
    return Plan(run, prepared, folder, path, len(valid), rows, parts)


def _holds_a_step(part: RunConfig, rows: int, labels: int) -> bool:
    """Return True if a part has enough rows for a batch, and the batch for all workers and micro-batches."""
    settled = recipes.with_recipe(part, rows, labels)
    least = max(1, part.compute.max_workers) * part.train.micro_batches
    return least <= settled.train.batch_size <= rows


def is_begun(part: RunConfig) -> bool:
    """Return True if the run on a part has begun, so that it is to be resumed."""
    return storage.exists(storage.join(part.run_folder, "run.yaml"))


def result(planned: Plan) -> Curve:
    """Score the runs of a plan and the run itself on the validation rows; write and return the learning curve."""
    score = "f1_micro" if planned.run.task_spec.is_multilabel else "accuracy"
    points = []
    for rows, run in [*planned.parts.items(), (planned.rows, planned.run)]:
        prepared = planned.prepared if run is planned.run else finished(run.run_folder)[1]
        evaluation = Evaluation(
            run=run,
            model=storage.join(storage.folder_of(planned.folder) if run is planned.run else run.run_folder, "model"),
            prepared=prepared,
            manifest=shards.load_manifest(prepared),
            data=[planned.valid],
            with_baseline=False,
        )
        scores = EVALUATORS[run.task_spec.name](evaluation)
        points.append({"rows": rows, **{key: scores[key] for key in (score, "f1_macro", "loss")}})
    seen, values = [point["rows"] for point in points], [point[score] for point in points]
    curve = Curve(
        run=storage.folder_of(planned.folder),
        score=score,
        valid_rows=planned.valid_rows,
        points=points,
        forecast=forecast(seen, values, planned.valid_rows, score),
    )
    storage.write_json(storage.join(planned.folder, RESULT), curve)
    return curve


def forecast(rows: Sequence[int], scores: Sequence[float], valid_rows: int, name: str) -> list[dict[str, Any]]:
    """Return the score `name` expected of twice and four times the last number of rows, with a 95 % range.

    The errors 1 - score are fitted by a power law that never rises. The range counts how far they are from it (by
    Student's t), but at least the chance of the validation rows. With two points it counts that chance alone.
    """
    errors = np.maximum(1 - np.array(scores), 0.5 / valid_rows)
    x, y = np.log(np.array(rows, float)), np.log(errors)
    centred = x - x.mean()
    slope = min(0.0, float(centred @ y / (centred @ centred)))
    residuals = y - y.mean() - slope * centred
    chance, freedom = float(np.mean((1 - errors) / (errors * valid_rows))), len(x) - 2
    width = 1.96 * math.sqrt(chance)
    if freedom:
        width = max(width, float(student_t.ppf(0.975, freedom)) * math.sqrt(float(residuals @ residuals) / freedom))
    found = []
    for factor in FORECASTS:
        distance = math.log(rows[-1] * factor) - x.mean()
        middle = y.mean() + slope * distance
        spread = width * math.sqrt(1 / len(x) + distance**2 / float(centred @ centred))
        low, high = (max(0.0, 1 - math.exp(middle + sign * spread)) for sign in (1, -1))
        found.append({"rows": rows[-1] * factor, name: 1 - math.exp(middle), "low": low, "high": high})
    return found


def _table(run: RunConfig, prepared: str, manifest: shards.Manifest, split: str) -> pa.Table:
    """Return the rows of a split with the columns that the run file names."""
    column = run.task_spec.shard_column
    tables = shards.first_rows(prepared, manifest, split, ["text", column], MAX_ROWS)
    table = pa.concat_tables(tables)
    texts, names = run.data.text, manifest.labels
    values = [(text,) if len(texts) == 1 else tuple(text.split("\n")) for text in table["text"].to_pylist()]
    if any(len(row) != len(texts) for row in values):
        raise DataError(
            f"`{run.run_folder}`: a row has a line break within a text column, so {listed(texts)} cannot be told "
            "apart. Replace it by a space."
        )
    columns = dict(zip(texts, map(list, zip(*values, strict=True)), strict=True))
    labels = table[column].to_pylist()
    columns[run.data.label] = [
        [names[one] for one in label] if run.task_spec.is_multilabel else names[label] for label in labels
    ]
    return pa.table(columns)


def _nested(train: pa.Table, run: RunConfig, num_labels: int) -> tuple[np.ndarray[Any, np.dtype[np.int64]], set[str]]:
    """Return the rows in an order whose beginnings are the parts, and their labels.

    The order is that of a hash of the text, after a row of each label.
    """
    texts = zip(*(train[name].to_pylist() for name in run.data.text), strict=True)
    order = np.argsort(shards.text_hashes(texts), kind="stable")
    labels = train[run.data.label].to_pylist()
    first: dict[Any, int] = {}
    for row in order.tolist():
        for label in labels[row] if run.task_spec.is_multilabel else [labels[row]]:
            first.setdefault(label, row)
        if len(first) == num_labels:
            break
    ahead = np.array(list(dict.fromkeys(first.values())), np.int64)
    return np.concatenate([ahead, order[~np.isin(order, ahead)]]), set(first)


def _part(settings: Mapping[str, Any], folder: str, size: int) -> RunConfig:
    """Return the run on a part of the rows."""
    changes: dict[str, Any] = {
        "name": str(size),
        "storage": folder,
        "data.train": storage.join(folder, "data", f"{size}.parquet"),
        "data.valid": storage.join(folder, "data", "valid.parquet"),
        "data.test": None,
        "data.test_fraction": 0.0,
        "data.corrections": None,
        "train.trackers": [],
    }
    return run_config.parse(set_dotted(changes, settings), f"run on {size:,} rows")


def _write_part(part: RunConfig, table: pa.Table) -> None:
    """Write the rows of a part, and a hash of them and its settings next to them.

    Raises `ConfigError` if its run began with others.
    """
    content, (path,) = _parquet(table), part.data.train or ()
    digest, marker = hashlib.sha256(content + run_config.dump(part).encode()).hexdigest(), f"{path}.sha256"
    if is_begun(part) and (not storage.exists(marker) or storage.read_bytes(marker).decode() != digest):
        raise ConfigError(
            f"`{part.storage}`: from before the run or its rows changed. Remove this folder, and run the command again."
        )
    storage.write_bytes(path, content)
    storage.write_bytes(marker, digest.encode())


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
