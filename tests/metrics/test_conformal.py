"""Conformal prediction sets: coverage of simulated rows, their sizes, the table of quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from txclf.metrics import conformal
from txclf.metrics.conformal import MAX_QUANTILES, Floats, Ints


def drawn(rows: int, classes: int, draw: np.random.Generator) -> tuple[Floats, Ints]:
    """Return probabilities that are too confident, and labels that are drawn from the true ones."""
    logits = draw.normal(size=(rows, classes)) * 2
    labels = (logits + draw.gumbel(size=(rows, classes))).argmax(axis=1)
    exponentials = np.exp(2 * logits)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("rows", [19, 200])
def test_members_marginal_coverage_is_as_asked(rows: int, coverage: float) -> None:
    # Each trial draws the held-out rows again, so that its one new row is covered with the marginal probability.
    trials, covered, draw = 2000, 0, np.random.default_rng(rows)
    for _ in range(trials):
        probabilities, labels = drawn(rows + 1, 4, draw)
        quantiles = conformal.table(probabilities[:-1], labels[:-1])
        found = conformal.members(probabilities[-1:], conformal.minimum(quantiles, rows, coverage))
        covered += bool(found[0, labels[-1]])
    # At least the coverage; at most one rank and one step of the table more.
    assert covered >= stats.binom.ppf(1e-6, trials, coverage)
    if coverage >= 0.8:  # the most probable label alone covers more than half
        most = min(1.0, coverage + 1 / (rows + 1) + 1 / MAX_QUANTILES)
        assert covered <= stats.binom.ppf(1 - 1e-6, trials, most)


def test_members_never_are_empty_and_have_the_most_probable_label() -> None:
    probabilities, labels = drawn(500, 5, np.random.default_rng(0))
    quantiles = conformal.table(probabilities, labels)
    for coverage in (1e-9, 0.01, 0.5):
        found = conformal.members(probabilities, conformal.minimum(quantiles, 500, coverage))
        assert found[np.arange(500), probabilities.argmax(axis=1)].all()
    assert conformal.members(probabilities, 1.0).sum() == 500


def test_members_coverage_1_has_every_label() -> None:
    probabilities, labels = drawn(500, 5, np.random.default_rng(0))
    probabilities[0] = [1, 0, 0, 0, 0]  # as float32 rounds it
    quantiles = conformal.table(probabilities, labels)
    assert conformal.members(probabilities, conformal.minimum(quantiles, 500, 1.0)).all()


@pytest.mark.parametrize("rows", [1, 7, 999, 1001, 2500])
def test_members_grow_with_the_coverage(rows: int) -> None:
    probabilities, labels = drawn(rows, 5, np.random.default_rng(1))
    quantiles = conformal.table(probabilities, labels)
    before = np.zeros(probabilities.shape, np.bool_)
    for coverage in np.linspace(0.001, 1, 500):
        found = conformal.members(probabilities, conformal.minimum(quantiles, rows, coverage))
        assert (found | ~before).all()
        before = found


@pytest.mark.parametrize("rows", [1, 10, 1000, 1001, 2500, 50_000])
def test_table_minimum_is_at_most_one_step_below_the_exact_quantile(rows: int) -> None:
    probabilities, labels = drawn(rows, 3, np.random.default_rng(2))
    quantiles = conformal.table(probabilities, labels)
    assert len(quantiles) == min(rows, MAX_QUANTILES)
    assert quantiles == sorted(quantiles, reverse=True)
    true = np.sort(probabilities[np.arange(rows), labels])[::-1]
    step = -(-rows // MAX_QUANTILES) - 1  # ranks between two quantiles
    for coverage in (0.07, 0.5, 0.9, 0.95, 0.999):
        rank = round(np.ceil(round((rows + 1) * coverage, 6)))
        found = conformal.minimum(quantiles, rows, coverage)
        if rank > rows:
            assert found == 0
        else:
            assert true[min(rank + step, rows) - 1] * (1 - 2e-5) <= found <= true[rank - 1]


def test_minimum_of_decimal_coverage_has_no_rounding_error() -> None:
    quantiles = [1 - i / 100 for i in range(99)]
    assert 100 * 0.07 > 7
    assert conformal.minimum(quantiles, 99, 0.07) == quantiles[6]


def test_minimum_too_few_rows_is_zero() -> None:
    assert conformal.minimum([0.9] * 18, 18, 0.95) == 0
    assert conformal.minimum([0.9] * 19, 19, 0.95) == 0.9


def test_scores_are_the_covered_share_and_the_mean_size() -> None:
    members = np.array([[True, False, False], [True, True, False], [False, True, True], [True, True, True]])
    assert conformal.scores(members, np.array([0, 2, 1, 0])) == {"coverage": 0.75, "mean_size": 2.0}
