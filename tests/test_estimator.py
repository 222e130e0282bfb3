"""`TextClassifier`: scikit-learn's checks and tools, and what it refuses."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import txclf
from txclf import TextClassifier

SETTINGS: dict[str, Any] = {
    "tokenizer": {"vocab_size": 270, "max_length": 16},
    "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "ngrams": False},
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"},
}
CHECKS = (
    "check_classifiers_regression_target",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_estimators_unfitted",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_non_transformer_estimators_n_iter",
    "check_parameters_default_constructible",
    "check_requires_y_none",
    "check_set_params",
    "check_supervised_y_no_nan",
    "check_valid_tag_types",
)
SKIPPED = {
    "fits on numbers, which are no texts": (
        "check_classifier_data_not_an_array",
        "check_classifiers_classes",
        "check_classifiers_multilabel_output_format_decision_function",
        "check_classifiers_multilabel_output_format_predict",
        "check_classifiers_multilabel_output_format_predict_proba",
        "check_classifiers_multilabel_representation_invariance",
        "check_classifiers_one_label",
        "check_classifiers_train",
        "check_complex_data",
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_empty_data_messages",
        "check_estimators_fit_returns_self",
        "check_estimators_nan_inf",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit1d",
        "check_fit2d_1feature",
        "check_fit2d_1sample",
        "check_fit2d_predict1d",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_pipeline_consistency",
        "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input",
        "check_supervised_y_2d",
    ),
    "fits on sparse matrices": (
        "check_estimator_sparse_array",
        "check_estimator_sparse_matrix",
        "check_estimator_sparse_tag",
    ),
    "needs `partial_fit`, `decision_function`, `sample_weight` or an array API": (
        "check_array_api_input",
        "check_classifiers_one_label_sample_weights",
        "check_decision_proba_consistency",
        "check_estimators_partial_fit_n_features",
    ),
}


class OfNumbers(TextClassifier):
    """The estimator with the tag of numbers: without it scikit-learn offers no checks at all."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def make(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return texts and their labels, which the words show."""
    draw = random.Random(seed)
    words = {"yes": ["good", "fine", "sun"], "no": ["bad", "grim", "rain"]}
    labels = [label for _ in range(count // 2) for label in words]
    return [" ".join(draw.choices(words[label], k=5)) + f" {i}" for i, label in enumerate(labels)], labels


TEXTS, LABELS = make(80)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    """Train one estimator for the tests that only use it; it leaves no temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        estimator = TextClassifier(SETTINGS).fit(TEXTS, LABELS)
        assert not list(Path(tempfile.gettempdir()).glob("txclf-*"))
    return estimator


@pytest.mark.parametrize("name", CHECKS)
def test_estimator_passes_the_check_of_scikit_learn(name: str) -> None:
    check: Callable[[str, Any], None] = getattr(estimator_checks, name)
    check("TextClassifier", TextClassifier())


def test_every_check_of_scikit_learn_is_run_or_skipped_for_a_reason() -> None:
    offered = set()
    for _, check in estimator_checks.estimator_checks_generator(OfNumbers(), legacy=True):
        while hasattr(check, "func"):
            check = check.func
        offered.add(check.__name__)
    skipped = {name for names in SKIPPED.values() for name in names}
    assert offered == skipped | set(CHECKS)
    assert not skipped & set(CHECKS)


def test_fit_learns_and_is_saved_as_a_bundle(fitted: TextClassifier, tmp_path: Path) -> None:
    assert fitted.classes_.tolist() == ["no", "yes"]
    assert fitted.n_features_in_ == 1
    assert fitted.score(TEXTS, LABELS) > 0.9
    probabilities = fitted.predict_proba(np.array(TEXTS[:3]))
    assert probabilities.shape == (3, 2)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert fitted.predict(pd.Series(TEXTS[:3])).tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    fitted.save(tmp_path / "model")
    loaded = txclf.Classifier.load(str(tmp_path / "model"))
    assert np.array_equal(loaded.probabilities([(text,) for text in TEXTS[:3]]), probabilities)
    with pytest.raises(txclf.ConfigError, match="is not empty"):
        fitted.save(tmp_path / "model")


def test_pickle_and_joblib_give_the_same_predictions_in_another_process(fitted: TextClassifier, tmp_path: Path) -> None:
    expected = fitted.predict_proba(TEXTS)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(TEXTS), expected)
    joblib.dump(fitted, tmp_path / "estimator.joblib")
    code = (
        "import joblib, sys; e = joblib.load(sys.argv[1]); print(e.predict(sys.argv[2:])); "
        "assert not {'ray.train', 'pytorch_lightning'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "estimator.joblib"), *TEXTS[:2]]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.split() == str(fitted.predict(TEXTS[:2])).split()


def test_clone_and_parameters_have_the_keys_of_the_run_file(fitted: TextClassifier) -> None:
    copy = clone(fitted)
    assert not hasattr(copy, "bundle_")
    assert copy.get_params(deep=False) == {"settings": SETTINGS}
    assert copy.get_params()["train.epochs"] == 3
    copy.set_params(**{"train.epochs": 5, "seed": 1})
    assert copy.settings == {**SETTINGS, "train": {**SETTINGS["train"], "epochs": 5}, "seed": 1}
    assert SETTINGS["train"]["epochs"] == 3
    assert fitted._repr_html_()
    with pytest.raises(ValueError, match=r"Invalid parameter 'trian\.epochs' for estimator TextClassifier"):
        copy.set_params(**{"trian.epochs": 5})
    run = TextClassifier(txclf.load_config(SETTINGS)).set_params(seed=1)
    assert txclf.load_config(run.settings) == txclf.load_config(SETTINGS, ["seed=1"])


def test_fit_and_search_a_run_file_which_may_be_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    search = GridSearchCV(TextClassifier(str(path)), {"train.learning_rate": [1e-9, 1e-2]}, cv=2)
    search.fit(TEXTS, LABELS)
    assert search.best_params_ == {"train.learning_rate": 1e-2}
    fitted = TextClassifier(str(path)).fit(TEXTS, LABELS)
    path.unlink()
    assert fitted.predict(TEXTS[:2]).tolist() == LABELS[:2]
    assert not (tmp_path / "runs").exists()


def test_cross_validation_and_a_grid_search_in_a_pipeline_work() -> None:
    assert cross_val_score(TextClassifier(SETTINGS), TEXTS, LABELS, cv=2).shape == (2,)
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text.upper() for text in texts]), TextClassifier())
    pipeline.set_params(textclassifier__settings=SETTINGS)
    search = GridSearchCV(pipeline, {"textclassifier__train.learning_rate": [1e-9, 1e-2]}, cv=2)
    search.fit(TEXTS, LABELS)
    assert search.best_params_ == {"textclassifier__train.learning_rate": 1e-2}
    assert search.score(TEXTS, LABELS) > 0.9


def test_fit_lists_of_labels_and_indicators_is_multilabel() -> None:
    sets = [["sunny", 1] if label == "yes" else [] for label in LABELS]
    with pytest.raises(ValueError, match="y: the labels are of several types"):
        TextClassifier(SETTINGS).fit(TEXTS, [["sunny", None]] * 80)
    named = [[str(label) for label in row] for row in sets]
    estimator = TextClassifier(SETTINGS).fit(TEXTS, named)
    assert estimator.classes_.tolist() == ["1", "sunny"]
    assert all(row in (["1", "sunny"], ["1"], ["sunny"], []) for row in estimator.predict(TEXTS))
    assert estimator.score(TEXTS, named) > 0.7
    assert estimator.score(TEXTS[:1], [["unknown"]]) == 0.0

    matrix = np.array([[label == "yes", False, label == "no"] for label in LABELS])
    estimator.fit(TEXTS, csr_matrix(matrix))
    assert estimator.classes_.tolist() == [0, 1, 2]
    predicted = estimator.predict(TEXTS)
    assert predicted.shape == (80, 3)
    assert not predicted[:, 1].any()
    assert estimator.predict_proba(TEXTS).shape == (80, 3)
    assert estimator.score(TEXTS, matrix) > 0.7


def test_fit_a_frame_has_a_text_column_each_and_keeps_the_run_in_its_storage(tmp_path: Path) -> None:
    frame = pd.DataFrame({"title": TEXTS, "body": TEXTS, "id": range(80)})
    settings = {**SETTINGS, "storage": str(tmp_path), "name": "kept", "data": {"text": ["title", "body"]}}
    estimator = TextClassifier(settings)
    estimator.fit(frame, [label == "yes" for label in LABELS], valid=(frame[:20], [True, False] * 10))
    assert estimator.feature_names_in_.tolist() == ["title", "body"]
    assert estimator.predict(frame[:2]).tolist() == [True, False]
    assert (tmp_path / "kept/summary.json").exists()
    with pytest.raises(txclf.ConfigError, match="exists already"):
        estimator.fit(frame, LABELS)
    with pytest.raises(ValueError, match="X has 1 features, but TextClassifier is expecting 2 features"):
        estimator.predict(TEXTS)
    with pytest.raises(txclf.DataError, match="`X`: no column `body`"):
        estimator.predict(frame[["title"]])


def test_predict_a_frame_takes_the_columns_in_the_order_of_training(tmp_path: Path) -> None:
    frame = pd.DataFrame({"title": TEXTS, "body": ["the same"] * 80})
    swapped = frame[["body", "title"]]
    estimator = TextClassifier(SETTINGS).fit(frame, LABELS, valid=(swapped[:20], LABELS[:20]))
    assert (estimator.predict_proba(swapped) == estimator.predict_proba(frame)).all()
    with pytest.raises(ValueError, match="feature names should match those that were passed during fit: expected `tit"):
        estimator.predict(frame.rename(columns={"body": "text"}))


def test_fit_that_fails_leaves_the_earlier_model(tmp_path: Path) -> None:
    estimator = TextClassifier({**SETTINGS, "storage": str(tmp_path), "name": "kept"})
    estimator.fit(TEXTS, [label == "yes" for label in LABELS])
    with pytest.raises(txclf.ConfigError, match="exists already"):
        estimator.fit(TEXTS, LABELS)
    assert estimator.classes_.tolist() == [False, True]
    assert estimator.predict(TEXTS[:2]).tolist() == [label == "yes" for label in LABELS[:2]]


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("a text", ["x"], "X: expected a sequence of texts"),
        ([], [], "X: found 0 sample"),
        (["a", None], ["x", "y"], "X: row 1: expected a string, found no text"),
        (pd.Series(["a", None], dtype="string"), ["x", "y"], "X: row 1: expected a string, found no text"),
        (["a", 3.5], ["x", "y"], "X: row 1: expected a string, found 3.5 of type float"),
        (["a", "b"], ["x"], "inconsistent numbers of samples"),
        (["a", "b"], [0.5, 0.7], "Unknown label type"),
        (["a", "b"], ["x", 3, None], "y: the labels are of several types"),
        (["a", "b"], [None, None], "y: the labels are of several types"),
        (["a", "b"], [[1, 0, 0], [0, 1, 1]], "y: row 0 holds 0 and 1"),
        (["a", "b"], [[1, 0], [0, 1]], "y: row 0 holds 0 and 1"),
        (["a", "b"], [[["x"]], [["y"]]], "y: the labels are of several types"),
        (["a", "b"], [["x"], None], "y: row 1 is no list of labels"),
        (["a", "b"], ["x", " x"], "y: two classes have the same text"),
        (["a", "b"], ["x", ""], "y: no label"),
        (["a", "b"], np.array([[1, 2], [0, 1]]), "holds 0 and 1"),
    ],
)
def test_fit_arguments_that_do_not_fit_are_value_errors(texts: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextClassifier(SETTINGS).fit(texts, labels)


def test_fit_other_arguments_are_errors_that_say_what_to_do() -> None:
    with pytest.raises(txclf.ConfigError, match="a text-to-text model is no classifier"):
        TextClassifier({"task": "seq2seq"}).fit(TEXTS, LABELS)
    with pytest.raises(txclf.ConfigError, match="Did you mean `epochs`"):
        TextClassifier({"train": {"epoch": 3}}).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="valid: the label 'maybe' is none of the training rows"):
        TextClassifier(SETTINGS).fit(TEXTS, LABELS, valid=(TEXTS[:1], ["maybe"]))
    with pytest.raises(NotFittedError):
        TextClassifier().predict(TEXTS)


def test_fit_trains_on_all_rows_but_the_validation_rows(tmp_path: Path) -> None:
    texts, labels = [f"{text} {number}" for number, text in enumerate(TEXTS * 15)], LABELS * 15
    for given, splits in ((None, {"train", "valid"}), (0.2, {"train", "valid", "test"})):
        settings = {**SETTINGS, "storage": str(tmp_path / str(given)), "train": {**SETTINGS["train"], "epochs": 1}}
        if given:
            settings["data"] = {"test_fraction": given}
        TextClassifier(settings).fit(texts, labels)
        (manifest,) = (tmp_path / str(given)).glob("prepared/*/manifest.json")
        assert set(json.loads(manifest.read_text())["splits"]) == splits
