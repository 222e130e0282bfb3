"""Average precision and F1 from counts, compared with scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from txclf.metrics import binned


def make(rows: int, classes: int, seed: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(seed)
    targets = draw.random((rows, classes)) < share
    logits = draw.normal(size=(rows, classes)) * 2 + targets
    # Of a width of 1/64, as cells are: so that no two scores of one cell differ.
    return torch.from_numpy(np.floor(logits * 64) / 64).float(), torch.from_numpy(targets).float()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (2, 3), (50, 1), (300, 5)])
def test_average_precision_equals_that_of_sklearn(rows: int, classes: int, seed: int) -> None:
    logits, targets = make(rows, classes, seed)
    found = binned.average_precision(binned.counted(logits, targets))
    for label in range(classes):
        if targets[:, label].any():
            expected = metrics.average_precision_score(targets[:, label], logits[:, label])
            assert found[label].item() == pytest.approx(expected)
        else:
            assert math.isnan(found[label])


@pytest.mark.parametrize("seed", range(5))
def test_curve_f1_equals_that_of_sklearn(seed: int) -> None:
    logits, targets = make(200, 3, seed)
    found = binned.curve(binned.counted(logits, targets)).f1
    for label in range(3):
        tried = [
            metrics.f1_score(targets[:, label], logits[:, label] >= edge)
            for edge in sorted(set(logits[:, label].tolist()))
        ]
        assert found[label].max().item() == pytest.approx(max(tried))
        half = metrics.f1_score(targets[:, label], logits[:, label] >= 0)
        assert found[label, binned.CELLS // 2].item() == pytest.approx(half)


def test_counted_chunks_add_up() -> None:
    logits, targets = make(300, 4, seed=1)
    whole = binned.counted(logits, targets)
    for parts in (1, 2, 7, 300):
        each = zip(logits.tensor_split(parts), targets.tensor_split(parts), strict=True)
        assert torch.equal(sum((binned.counted(*part) for part in each), torch.zeros_like(whole)), whole)
    assert whole[1].sum(-1).tolist() == targets.sum(0).tolist()
    assert whole.sum().item() == 1200


def test_cells_extreme_values_and_nan_have_a_cell() -> None:
    logits = torch.tensor([[-math.inf], [-100.0], [-16.0], [0.0], [15.999], [16.0], [1e30], [math.nan]])
    middle = binned.CELLS // 2
    assert binned.cells(logits)[:, 0].tolist() == [0, 0, 0, middle, 2 * middle - 1, 2 * middle, 2 * middle, middle]


def test_ranking_covers_the_labels_that_occur() -> None:
    logits, targets = make(200, 4, seed=2)
    targets[:, 2] = 0
    found = binned.ranking(binned.counted(logits, targets))
    kept = [0, 1, 3]
    assert found == pytest.approx(binned.ranking(binned.counted(logits[:, kept], targets[:, kept])))
    areas = [metrics.average_precision_score(targets[:, label], logits[:, label]) for label in kept]
    assert found["valid_map"] == pytest.approx(np.mean(areas))
    best = binned.curve(binned.counted(logits, targets)).f1[kept].max(dim=1)
    assert found["valid_f1_macro"] == pytest.approx(best.values.mean().item())
    given = logits[:, kept] >= (best.indices * 2 * binned.REACH / (binned.CELLS - 1) - binned.REACH)
    micro = metrics.f1_score(targets[:, kept], given, average="micro")
    assert found["valid_f1_micro"] == pytest.approx(micro)
    nothing = binned.ranking(binned.counted(logits, torch.zeros_like(targets)))
    assert set(nothing.values()) == {0.0}
