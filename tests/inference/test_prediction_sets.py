"""Prediction sets of a bundle: their labels, and the models and coverages that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.prediction import with_quantiles
from tests.helpers.serving import TEXTS, untrained
from txclf import Classifier
from txclf.core.errors import ConfigError
from txclf.inference import bundle, prediction_sets

QUANTILES = [0.9 - i * 0.8 / 98 for i in range(99)]


def test_label_sets_are_ordered_by_probability(tiny_bundle: str) -> None:
    metadata = bundle.read_metadata(tiny_bundle)
    rows = np.array([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8]], np.float32)
    assert prediction_sets.label_sets(metadata, rows, 0.3) == [["high", "mid"], ["low", "mid"], ["high"]]
    assert prediction_sets.label_sets(metadata, rows, 0.9) == [["high"], ["low"], ["high"]]
    assert prediction_sets.label_sets(metadata, rows[:0], 0.9) == []


def test_classifier_prediction_sets_begin_with_its_label_and_grow(tiny_bundle: str, tmp_path: Path) -> None:
    classifier = Classifier.load(with_quantiles(tiny_bundle, tmp_path, QUANTILES))
    sizes = []
    for coverage in (0.01, 0.7, 1.0):
        sets = classifier.prediction_sets(TEXTS, coverage)
        assert [labels[0] for labels in sets] == [prediction.label for prediction in classifier(TEXTS)]
        sizes.append(sum(map(len, sets)))
    assert sizes[0] == len(TEXTS) < sizes[1] <= sizes[2] == 3 * len(TEXTS)
    assert classifier.prediction_sets([], 0.9) == []
    with pytest.raises(TypeError, match="expected a list of texts"):
        classifier.prediction_sets("fox", 0.9)


@pytest.mark.parametrize("coverage", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_minimum_coverage_out_of_range_is_refused(tiny_bundle: str, tmp_path: Path, coverage: float) -> None:
    metadata = bundle.read_metadata(with_quantiles(tiny_bundle, tmp_path, QUANTILES))
    with pytest.raises(ConfigError, match=r"^--coverage: .* is out of range\. Pass a number above 0 and at most 1"):
        prediction_sets.minimum(metadata, coverage, "--coverage")


def test_minimum_bundle_without_quantiles_is_refused(tiny_bundle: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no quantiles for prediction sets.* Train it again without `train\.train_on"
    ):
        prediction_sets.minimum(bundle.read_metadata(tiny_bundle), 0.9)


@pytest.mark.parametrize(("task", "message"), [("multilabel", "by their thresholds"), ("seq2seq", "has no labels")])
def test_minimum_other_tasks_are_refused(tmp_path: Path, task: str, message: str) -> None:
    folder = untrained(tmp_path, task=task, **({"data": {"target": "target"}} if task == "seq2seq" else {}))
    with pytest.raises(ConfigError, match=rf"`coverage`: a `{task}` model .*{message}\. Remove `coverage`\."):
        prediction_sets.minimum(bundle.read_metadata(folder), 0.9)
