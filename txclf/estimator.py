"""A classifier with the interface of scikit-learn, trained by an ordinary run.

classifier = txclf.TextClassifier({"train": {"epochs": 3}})
classifier.fit(texts, labels)
print(classifier.predict(["some text"]), classifier.score(test_texts, test_labels))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from txclf import api
from txclf.config import recipes, run_config
from txclf.config.dotted import flatten_dotted, set_dotted
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.core.text import listed, shown
from txclf.data import labels, tables
from txclf.inference.classifier import Classifier

Rows = list[tuple[str, ...]]
SETS = (list, tuple, set, frozenset, np.ndarray)


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier of texts for pipelines, cross-validation and searches of scikit-learn.

    `settings` is a run: a mapping with the keys of a run file, a path or a `RunConfig`. Dotted keys are parameters too,
    so `GridSearchCV(TextClassifier(), {"train.learning_rate": [1e-3, 3e-3]})` searches them. The run is made in a
    temporary folder, unless the settings name a `storage`, as a `RunConfig` always does: then it is kept as
    `storage/name`, and another fit needs another `name`.

    The fitted attributes are `classes_`, `n_features_in_` (text columns), `feature_names_in_` (of a table),
    `classifier_` (the `txclf.Classifier`) and `bundle_` (the content of its files, which a pickle holds).
    """

    def __init__(self, settings: api.Run | None = None) -> None:
        self.settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return `settings` and, with `deep`, the values of a mapping by dotted key."""
        known = {"settings": self.settings}
        return known | flatten_dotted(self.settings) if deep and isinstance(self.settings, Mapping) else known

    def set_params(self, **params: Any) -> Self:
        """Set `settings`, or single keys of it by their dotted names. Raises `ValueError` for other names."""
        self.settings = params.pop("settings", self.settings)
        if unknown := [name for name in params if name.partition(".")[0] not in RunConfig.model_fields]:
            raise ValueError(
                f"Invalid parameter {unknown[0]!r} for estimator {type(self).__name__}. Valid parameters are "
                "'settings' and the keys of a run file, as in 'train.epochs'."
            )
        if params:
            given = self.settings or {}
            self.settings = set_dotted(params, _settings(given))
        return self

    def fit(self, X: Any, y: Any, *, valid: tuple[Any, Any] | None = None) -> Self:
        """Train on texts and their labels.

        `X` is a sequence of texts, or an array or DataFrame with a text column each. `y` has a label per text:
        strings, integers or booleans. A list of lists of labels, or an array (rows, labels) of 0 and 1, trains a
        multilabel classifier. `valid` is such a pair of validation rows, by default a part of the training rows.

        Raises `ValueError` for arguments that do not fit, and the errors of `txclf.train`.
        """
        run = api.load_config(self.settings)
        holds_out = bool({"test", "test_fraction"} & run.data.model_fields_set)
        answers, classes, is_indicator = _answers(y)
        wanted = list(run.data.text) if "text" in run.data.model_fields_set else None
        texts, names = _texts(X, wanted, "X")
        if run.task_spec.is_seq2seq:
            raise ConfigError(f"`task: {run.task}`: a text-to-text model is no classifier. Use `txclf.train`.")
        cells = _cells(classes)
        cell_of = dict(zip(classes.tolist(), cells, strict=True))
        named = names if _has_columns(X) else None
        columns = [f"text_{i}" if len(names) > 1 else "text" for i in range(len(names))]
        settings: dict[str, Any] = {"task": "classify" if is_indicator is None else "multilabel"}
        settings |= {"data.text": columns, "data.label": "label"}
        if not holds_out:
            settings["data.test_fraction"] = 0.0  # nobody scores the model on a test split
        data = {"train": _table(texts, answers, columns, cell_of)}
        if valid is not None:
            valid_texts, _ = _texts(valid[0], wanted or _as_trained(valid[0], named), "valid")
            data["valid"] = _table(valid_texts, _answers(valid[1])[0], columns, cell_of)
        with tempfile.TemporaryDirectory(prefix="txclf-") as temporary:
            if "storage" not in _settings(self.settings or {}):
                settings["storage"] = temporary
            run = run_config.with_overrides(run, settings)
            api.train(run, data=data)
            folder = storage.join(run.run_folder, "model")
            bundle = {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_folder(folder)}
        # All at once, so that a `fit` that fails leaves the model of an earlier one as it was.
        self.bundle_, self.classes_, self.n_features_in_ = bundle, classes, len(columns)
        self._cells, self._is_indicator, self._columns = cells, is_indicator, wanted
        if named:
            self.feature_names_in_ = np.array(named, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self._load()
        return self

    def predict(self, X: Any) -> Any:
        """Return the predicted class of each row: an array of classes.

        A multilabel classifier returns what it was trained on: an array (rows, labels) of 0 and 1, or lists of labels.
        """
        found = self.predict_proba(X)
        if self._is_indicator is None:
            return self.classes_[found.argmax(axis=1)]
        thresholds = dict(zip(self.classifier_.labels, self.classifier_.thresholds, strict=True))
        reached = found >= [thresholds.get(cell, np.inf) for cell in self._cells]
        if self._is_indicator:
            return reached.astype(np.int64)
        return [self.classes_[row].tolist() for row in reached]

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the probability of each class (rows, classes), in the order of `classes_`."""
        check_is_fitted(self)
        wanted = self._columns or _as_trained(X, getattr(self, "feature_names_in_", None))
        texts, names = _texts(X, wanted, "X")
        if len(names) != self.n_features_in_:
            raise ValueError(
                f"X has {len(names)} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input."
            )
        probabilities = self.classifier_.probabilities(texts)
        column = {cell: probabilities[:, i] for i, cell in enumerate(self.classifier_.labels)}
        never = np.zeros(len(texts), np.float32)  # of a label that no training row had
        return np.stack([column.get(cell, never) for cell in self._cells], axis=1)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of the rows that are right, for a multilabel classifier with all their labels."""
        predicted = self.predict(X)
        if self._is_indicator is False:
            y, predicted = (self._indicators(rows) for rows in (y, predicted))
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model bundle to a folder, from which `txclf.Classifier.load`, `predict` and `serve` read it."""
        check_is_fitted(self)
        if storage.list_folder(folder):
            raise ConfigError(f"`{os.fspath(folder)}` is not empty. Choose another folder.")
        for name in sorted(self.bundle_, key="model.json".__eq__):  # which marks the bundle as complete
            storage.write_bytes(storage.join(folder, name), self.bundle_[name])

    def _indicators(self, rows: Sequence[Iterable[Hashable]]) -> npt.NDArray[np.bool_]:
        """Return label sets as an array (rows, classes); labels that are no classes have a column each."""
        known = dict.fromkeys([*self.classes_.tolist(), *(label for row in rows for label in row)])
        sets = [set(row) for row in rows]
        found = np.array([[label in row for label in known] for row in sets], dtype=bool).reshape(len(sets), len(known))
        count = len(self.classes_)
        return np.column_stack([found[:, :count], found[:, count:].any(axis=1)])

    def _load(self) -> None:
        with tempfile.TemporaryDirectory(prefix="txclf-") as folder:
            for name, content in self.bundle_.items():
                storage.write_bytes(storage.join(folder, name), content)
            self.classifier_ = Classifier.load(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "classifier_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "bundle_" in state:
            self._load()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags


def _settings(given: api.Run) -> Mapping[str, Any]:
    """Return the keys that are set in a run."""
    if isinstance(given, RunConfig):
        return recipes.set_keys(given)
    return given if isinstance(given, Mapping) else run_config.read_settings(given)


def _cells(classes: npt.NDArray[Any]) -> list[str]:
    """Return the label that the model has for each class."""
    reasons: dict[int, str] = {}
    texts = labels.single(classes.tolist(), "y", set(), reasons)
    if reasons or len(set(texts)) < len(texts):
        problem = next(iter(reasons.values()), "two classes have the same text")
        raise ValueError(f"y: {problem}. Give each class a text of its own.")
    return texts


def _has_columns(X: Any) -> bool:
    """Return True for a table, whose columns have names."""
    return tables.is_table(X) and (hasattr(X, "columns") or hasattr(X, "column_names"))


def _as_trained(X: Any, names: Sequence[str] | None) -> list[str] | None:
    """Return the columns of a table in the order of training, None without names or for another number of columns.

    Raises `ValueError` for other names, as scikit-learn does.
    """
    if names is None or not _has_columns(X) or len(found := tables.names(X)) != len(names):
        return None
    if set(found) != set(names):
        raise ValueError(
            f"The feature names should match those that were passed during fit: expected {listed(names)}, found "
            f"{listed(found)}."
        )
    return list(names)


def _texts(X: Any, wanted: list[str] | None, name: str) -> tuple[Rows, list[str]]:
    """Return the texts of each row, and the names of their columns; of an array the numbers.

    `wanted` are the columns of a table to take; None takes all.
    """
    if isinstance(X, str):
        raise ValueError(f'{name}: expected a sequence of texts, as in ["some text"], found a text.')
    if _has_columns(X):
        names = wanted or tables.names(X)
        found = tables.columns(X, names, name)
        columns = [found[column].to_pylist() for column in names]
    else:
        cells = np.asarray(X, dtype=object)
        if cells.ndim not in (1, 2):
            raise ValueError(f"{name}: expected texts or columns of texts, found {cells.ndim} dimensions.")
        columns = [cells.tolist()] if cells.ndim == 1 else cells.T.tolist()
        names = list(map(str, range(len(columns))))
    if not columns or not len(columns[0]):
        raise ValueError(f"{name}: found 0 sample(s) or 0 feature(s), a minimum of 1 is required.")
    rows = list(zip(*columns, strict=True))
    for number, row in enumerate(rows):
        if not all(isinstance(cell, str) for cell in row):
            rows[number] = _row(row, f"{name}: row {number}")
    return rows, names


def _row(row: tuple[Any, ...], where: str) -> tuple[str, ...]:
    """Return a row with the columns that are missing as empty texts. Raises `ValueError` if that is all of them."""
    filled = ["" if _is_missing(cell) else cell for cell in row]
    wrong = next((cell for cell in filled if not isinstance(cell, str)), None)
    if wrong is not None or not any(filled):
        kind = "no text" if wrong is None else f"{shown(repr(wrong))} of type {type(wrong).__name__}"
        raise ValueError(f"{where}: expected a string, found {kind}.")
    return tuple(filled)


def _is_missing(cell: object) -> bool:
    """Return True for None, NaN, NaT and the NA of pandas, which has no truth value."""
    try:
        return cell is None or bool(cell != cell)
    except (TypeError, ValueError):
        return type(cell).__name__ == "NAType"


def _answers(y: Any) -> tuple[list[Any], npt.NDArray[Any], bool | None]:
    """Return the answer of each row and the sorted classes.

    The last value is None for a class per row, True for an array (rows, labels) and False for lists of labels.
    """
    if y is None:
        raise ValueError("TextClassifier requires y to be passed, but the target y is None")
    if isinstance(y, list | tuple) and y and all(isinstance(row, SETS) for row in y):
        rows = [list(row) for row in y]
        classes = _unique([label for row in rows for label in row])
        is_indicator = len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 and set(classes.tolist()) == {0, 1}
        repeated = next((number for number, row in enumerate(rows) if len(set(row)) < len(row)), None)
        if is_indicator or repeated is not None:
            raise ValueError(
                f"y: row {repeated or 0} holds 0 and 1 for each label, or a label twice. Pass such columns as an array."
            )
        return rows, classes, False
    if isinstance(y, list | tuple) and any(isinstance(row, SETS) for row in y):
        number = next(number for number, row in enumerate(y) if not isinstance(row, SETS))
        raise ValueError(f"y: row {number} is no list of labels, and others are. Use `[]` for no label.")
    array = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
    if array.ndim == 1 and array.dtype == object and len(array) and all(isinstance(row, SETS) for row in array):
        return _answers(list(array))
    if array.ndim == 2 and array.shape[1] > 1:
        if not np.isin(array, (0, 1)).all():
            raise ValueError("y: an array with several columns holds 0 and 1, a column for each label.")
        names = np.array(list(y.columns)) if hasattr(y, "columns") else np.arange(array.shape[1])
        return [names[row.astype(bool)].tolist() for row in array], names, True
    array = column_or_1d(array, warn=True)
    classes = _unique(y if isinstance(y, list | tuple) else array.tolist())
    assert_all_finite(array, input_name="y")
    check_classification_targets(array)
    return array.tolist(), classes, None


def _unique(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return the sorted distinct values. Raises `ValueError` if they are of several types."""
    try:
        sorted(set(values))  # numpy would turn 1 and None into texts
        return np.unique(np.asarray(values))
    except TypeError:
        raise ValueError("y: the labels are of several types, or some are missing. Give them one type.") from None


def _table(texts: Rows, answers: list[Any], columns: list[str], cells: Mapping[Hashable, str]) -> pa.Table:
    """Return rows as a table with the columns `columns` and `label`. Raises `ValueError` for an unknown label."""
    check_consistent_length(texts, answers)
    try:
        named = [[cells[label] for label in row] if isinstance(row, list) else cells[row] for row in answers]
    except KeyError as error:
        raise ValueError(f"valid: the label {shown(error)} is none of the training rows.") from None
    return pa.table([*map(pa.array, zip(*texts, strict=True)), pa.array(named)], names=[*columns, "label"])
