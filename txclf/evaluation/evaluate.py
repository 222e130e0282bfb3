"""`txclf evaluate`: score a finished run on its test split or on other labelled files, next to simple baselines.

`EVALUATORS` holds one evaluator per task. Each returns the content of `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.artifacts import run_folder as run_folders
from txclf.artifacts import trials
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute
from txclf.core import html_table, storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.hashing import UInt64s
from txclf.data import shards, sources, tables
from txclf.data.labels import LabelSets
from txclf.evaluation import baselines, labelled_files, scoring
from txclf.evaluation.scoring import ScoredRows, ScoringPlan
from txclf.inference import bundle, prediction_sets
from txclf.inference.bundle import Floats
from txclf.inference.classifier import label_thresholds, sigmoid, softmax
from txclf.inference.metadata import BundleMetadata
from txclf.metrics import calibration, conformal, intervals, multiclass, multilabel, thresholds
from txclf.metrics.text import text_scores
from txclf.ngrams import fitting

METRICS = "metrics.json"
OTHER_METRICS = "metrics-data.json"
"""Scores on files of `--data`, the last ones."""
COVERAGES = (0.9, 0.95)
"""Coverages whose prediction sets are scored."""

Bools = npt.NDArray[np.bool_]


class Scores(dict[str, Any]):
    """Content of `metrics.json`: a mapping that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        """Return the scores of the model next to those of the baselines, then those of each class."""
        others = [name for name in ("baseline", "majority") if name in self]
        shared = [key for key, value in self.items() if isinstance(value, float) and not isinstance(value, bool)]
        rows = [[key, self[key], *(self[name].get(key) for name in others)] for key in shared]
        title = f"Scores on {self['rows']:,} rows"
        found = html_table.table(title, rows, ["", "model", *others] if others else ())
        classes: dict[str, dict[str, Any]] = self.get("per_class", {})
        if not classes:
            return found
        columns = ("precision", "recall", "f1", "support")
        worst = sorted(classes.items(), key=lambda item: item[1]["f1"])
        lines = [[label, *(scores[column] for column in columns)] for label, scores in worst]
        return found + html_table.table("Classes, worst first", lines, ["label", *columns])


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Finished run and the rows to score."""

    run: RunConfig
    model: str
    """Folder of the run's bundle."""
    prepared: str
    """Folder of the prepared data."""
    manifest: shards.Manifest
    data: Sequence[str] | None
    """Labelled files to score; None for the test split."""
    with_baseline: bool
    """True to score the baselines too. Seq2seq has none."""
    compute: Compute | None = None
    """Ray workers that score; None for this process."""

    def scored(self) -> ScoredRows:
        """Score all rows. Raises `DataError` for bad rows that the run does not skip, and if there is no row."""
        plan = ScoringPlan(
            run=self.run,
            model=self.model,
            prepared=self.prepared,
            sources=self.manifest.splits["test"].shards if self.data is None else self.files(),
            with_text=self.with_baseline,
        )
        parts = list(scoring.score_here(plan) if self.compute is None else scoring.score_on_ray(plan, self.compute))
        if self.data is not None and not parts:  # files without a row
            labelled_files.require_usable(self.run, self.data, 0, [])
        rows = scoring.joined(parts)
        if self.data is not None:
            labelled_files.require_usable(self.run, self.data, rows.answers.num_rows, rows.rejects)
        return rows

    def files(self) -> list[sources.Source]:
        """Return the files of `data`, which are read as those of the run are."""
        assert self.data is not None
        return sources.find_sources(self.data, self.run.data.encoding, self.run.data.delimiter)

    def first_rows(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Return the first rows of a prepared split, at most as many as the baselines use."""
        return pa.concat_tables(shards.first_rows(self.prepared, self.manifest, name, columns, fitting.MAX_ROWS))

    def linear(self, texts: Sequence[str], rows: Callable[[str], baselines.Rows]) -> baselines.Baseline:
        """Score texts with the linear model of the bundle, or with one that is trained now.

        `rows` returns the rows of a split to train and choose on.
        """
        blend = bundle.load_blend(self.model)
        if blend:
            return baselines.ngrams_of_bundle(blend, texts)
        lowercase, num_labels = self.run.tokenizer.lowercase, len(self.manifest.labels)
        return baselines.ngrams(
            *(rows("train"), rows("valid"), texts),
            num_labels=num_labels,
            lowercase=lowercase,
            by_macro_f1=self.run.train.monitor == "valid_f1_macro",
        )

    def trained_rows(self) -> int:
        """Count the scored rows whose text is among the rows that the model was trained on."""
        splits, train = ["train"], self.run.train
        splits += ["valid"] if train.train_on_valid else []
        if shards.UNLABELLED in self.manifest.splits and (self.run.distill.teacher or train.pretrain_epochs):
            splits.append(shards.UNLABELLED)
        if self.data is None and splits == ["train"]:
            return self.manifest.splits["test"].duplicates_of_train
        scored = _hashes(chain.from_iterable(self._texts("test") if self.data is None else self._texts_of_files()))
        seen = np.zeros(len(scored), np.bool_)
        for split in splits:
            for texts in self._texts(split):
                seen |= np.isin(scored, _hashes(texts))
        return int(seen.sum())

    def _texts(self, split: str) -> Iterator[list[str]]:
        """Yield the texts of each row group of a prepared split."""
        for shard in self.manifest.splits[split].shards:
            for table in shards.read_groups(self.prepared, shard, ["text"]):
                yield table["text"].to_pylist()

    def _texts_of_files(self) -> Iterator[list[str]]:
        """Yield the texts of each chunk of `data`."""
        known = bundle.read_metadata(self.model).labels or None
        for source in self.files():
            for chunk in labelled_files.read_answers(self.run, source, known):
                yield ["\n".join(text) for text in chunk.texts]

    def source(self, rows: ScoredRows) -> dict[str, Any]:
        """Return the part of the result that names the scored rows."""
        if self.data is None:
            return {"data": "test", "skipped": self.manifest.splits["test"].rejected}
        return {"data": list(self.data), "skipped": len(rows.rejects)}


def evaluate(
    run_folder: str,
    data: Any = None,
    with_baseline: bool = True,
    compute: Compute | None = None,
) -> Scores:
    """Score every row of the test split, or of other `data`, and return the scores.

    They are written to `metrics.json`, those of `data` to `metrics-data.json`. `trained_rows` counts the rows whose
    text the model was trained on. `data` are labelled files or a table in memory, which is stored in the run folder.

    `compute` distributes the rows over Ray workers; Ray must be connected, and every node must reach all paths.

    The folder of a search stands for the model of its winner.

    Raises `ConfigError` if the folder is not a finished run or has no test split, `DataError` for bad rows.
    """
    folder = storage.absolute(run_folder)
    run, prepared = finished(run_folder)
    files = None if data is None else tables.paths(data, run, storage.join(folder, tables.FOLDER), "data")
    evaluation = Evaluation(
        run=run,
        model=storage.join(folder, "model"),
        prepared=prepared,
        manifest=shards.load_manifest(prepared),
        data=files,
        with_baseline=with_baseline,
        compute=compute,
    )
    if data is None and "test" not in evaluation.manifest.splits:
        raise ConfigError(
            f"`{run_folder}`: the run has no test split. Pass labelled files with --data FILE, or train with "
            "`data.test` or `data.test_fraction`."
        )
    result = Scores(EVALUATORS[run.task_spec.name](evaluation), trained_rows=evaluation.trained_rows())
    storage.write_json_lines(storage.join(folder, metrics_file(data)), result)
    return result


def metrics_file(data: Sequence[str] | None) -> str:
    """Return the name of the file with the scores of the test split, or of other files."""
    return METRICS if data is None else OTHER_METRICS


def has_test_split(run_folder: str) -> bool:
    """Return True if a finished run, or the winner of a search, has a test split, and its prepared data are there."""
    try:
        return "test" in shards.load_manifest(finished(run_folder)[1]).splits
    except DataError:
        return False


def finished(run_folder: str) -> tuple[RunConfig, str]:
    """Return a finished run, or the winner of a search, and the folder of its prepared data.

    Raises `DataError` if the data are gone.
    """
    folder = storage.absolute(run_folder)
    search = storage.join(folder, "search.json")
    if storage.exists(search):
        winner = trials.folder(folder, storage.read_object(search, "winner")["winner"])
        return run_config.load(storage.join(folder, "best.yaml")), _prepared(winner, storage.folder_of(folder))
    if not storage.exists(storage.join(folder, "summary.json")):
        raise ConfigError(
            f"`{run_folder}`: not a finished run, because it has no summary.json. "
            "Train it, or resume its training with --resume."
        )
    return run_config.load(storage.join(folder, "run.yaml")), _prepared(folder, storage.folder_of(folder))


def _prepared(folder: str, copied_to: str) -> str:
    prepared = run_folders.prepared_folder(folder, copied_to)
    if prepared is None:
        raise DataError(f"`{folder}`: its prepared data are gone. Train again, or copy them together with the run.")
    return prepared


def evaluate_classes(evaluation: Evaluation) -> dict[str, Any]:
    """Score a single-label classifier."""
    metadata = bundle.read_metadata(evaluation.model)
    rows = evaluation.scored()
    labels = _class_ids(rows.answers)
    probabilities = softmax(rows.logits, metadata.temperature)
    return {
        **evaluation.source(rows),
        "labels": metadata.labels,
        **multiclass.scores(probabilities, labels, metadata.labels),
        "temperature": metadata.temperature,
        "calibration_error_before": calibration.error(rows.logits, labels),
        "prediction_sets": _set_scores(metadata, probabilities, labels),
        **(_class_baselines(evaluation, rows.answers, probabilities) if evaluation.with_baseline else {}),
    }


def _set_scores(
    metadata: BundleMetadata, probabilities: Floats, labels: npt.NDArray[np.int64]
) -> dict[str, dict[str, float]] | None:
    """Return the measured coverage and the mean size of the prediction sets for each of `COVERAGES`.

    Return None if the bundle has no quantiles for them.
    """
    if metadata.conformal is None:
        return None
    return {
        str(coverage): conformal.scores(
            conformal.members(probabilities, prediction_sets.minimum(metadata, coverage)), labels
        )
        for coverage in COVERAGES
    }


def _class_baselines(evaluation: Evaluation, table: pa.Table, probabilities: Floats) -> dict[str, Any]:
    """Score the majority class and the n-gram linear model on the rows of a table."""
    labels, classes = _class_ids(table), len(evaluation.manifest.labels)
    counts = evaluation.manifest.splits["train"].label_counts
    most_frequent = np.argmax([counts[label] for label in evaluation.manifest.labels])
    majority = np.full(len(labels), most_frequent, np.int64)

    def rows(split: str) -> baselines.Rows:
        found = evaluation.first_rows(split, ["label", "text"])
        return baselines.Rows(found["text"].to_pylist(), _class_ids(found))

    linear = evaluation.linear(table["text"].to_pylist(), rows)
    predicted = linear.logits.argmax(axis=1)
    return {
        "majority": multiclass.short_scores(majority, labels, classes),
        "baseline": {
            **multiclass.short_scores(predicted, labels, classes),
            **intervals.record(labels, probabilities.argmax(axis=1), predicted, evaluation.manifest.labels),
            **linear.record(evaluation.manifest.splits["train"].rows),
        },
    }


def evaluate_label_sets(evaluation: Evaluation) -> dict[str, Any]:
    """Score a multilabel classifier at its thresholds."""
    metadata = bundle.read_metadata(evaluation.model)
    rows = evaluation.scored()
    targets = _targets(rows.answers, len(metadata.labels))
    probabilities, limits = sigmoid(rows.logits, metadata.temperature), label_thresholds(metadata)
    return {
        **evaluation.source(rows),
        "labels": metadata.labels,
        **multilabel.scores(probabilities, targets, limits, metadata.labels),
        "temperature": metadata.temperature,
        "calibration_error_before": calibration.error(rows.logits, targets),
        **(_label_set_baselines(evaluation, rows.answers, probabilities >= limits) if evaluation.with_baseline else {}),
    }


def _label_set_baselines(evaluation: Evaluation, table: pa.Table, model_predicted: Bools) -> dict[str, Any]:
    """Score the most frequent set of labels and the n-gram linear model on the rows of a table.

    The thresholds of the linear model are chosen on the validation rows, as those of the model.
    """
    labels = len(evaluation.manifest.labels)

    def rows(split: str) -> baselines.Rows:
        found = evaluation.first_rows(split, ["labels", "text"])
        return baselines.Rows(found["text"].to_pylist(), _targets(found, labels))

    train, valid = rows("train"), rows("valid")
    targets = _targets(table, labels)
    sets, counts = np.unique(train.labels, axis=0, return_counts=True)
    majority = np.tile(sets[counts.argmax()], (len(targets), 1))
    texts = [*valid.texts, *table["text"].to_pylist()]
    linear = evaluation.linear(texts, {"train": train, "valid": valid}.__getitem__)
    num_valid = len(valid.texts)
    limits = np.array(thresholds.choose(linear.logits[:num_valid], valid.labels.astype(np.bool_)), np.float32)
    predicted = sigmoid(linear.logits[num_valid:]) >= limits
    return {
        "majority": multilabel.short_scores(majority, targets),
        "baseline": {
            **multilabel.short_scores(predicted, targets),
            **intervals.record(targets, model_predicted, predicted, evaluation.manifest.labels, "f1_micro"),
            **linear.record(evaluation.manifest.splits["train"].rows),
        },
    }


def evaluate_targets(evaluation: Evaluation) -> dict[str, Any]:
    """Score a seq2seq model: the targets with teacher forcing, the generated texts with BLEU, chrF and exact match."""
    generate = bundle.read_metadata(evaluation.model).generate
    assert generate is not None
    rows = evaluation.scored()
    return {
        **evaluation.source(rows),
        "beams": generate.num_beams,
        "seconds": round(rows.seconds, 2),
        **rows.forced.scores(),
        **text_scores(rows.outputs, rows.answers["target"].to_pylist()),
    }


EVALUATORS: dict[str, Callable[[Evaluation], dict[str, Any]]] = {
    "classify": evaluate_classes,
    "multilabel": evaluate_label_sets,
    "seq2seq": evaluate_targets,
}
"""Evaluator by `TaskSpec.name`."""


def _hashes(texts: Iterable[str]) -> UInt64s:
    return shards.text_hashes((text,) for text in texts)


def _class_ids(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the class id of each row (rows,)."""
    return np.asarray(table["label"].to_numpy(), np.int64)


def _targets(table: pa.Table, labels: int) -> Bools:
    """Return which labels each row has (rows, labels)."""
    return LabelSets.from_tables([table]).matrix(labels)
