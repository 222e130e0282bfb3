"""Training of linear models: what they learn, what is chosen, degenerate rows, the share beside a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.topics import LABELS, TEXTS, make, noisy, small_choice
from txclf.metrics import calibration
from txclf.ngrams import fitting
from txclf.ngrams.features import Analyzer, count
from txclf.ngrams.fitting import choose, fit

WORDS = Analyzer(words=1)


def test_choose_learns_topics_and_calibrates_on_the_validation_rows() -> None:
    texts, labels = make(300)
    labels[::10] = (labels[::10] + 1) % 3  # so that certainty has a price
    valid_texts, valid_labels = make(200, seed=1)
    valid_labels[::10] = (valid_labels[::10] + 1) % 3
    choice = choose(texts, labels, valid_texts, valid_labels, num_labels=3)
    assert {candidate.weighting for candidate in choice.candidates} == {"tfidf", "naive bayes"}
    assert len(choice.candidates) == 5
    logits = choice.model.logits(valid_texts)
    best = max(candidate.score for candidate in choice.candidates)
    assert float((logits.argmax(axis=1) == valid_labels).mean()) == best > 0.85
    assert choice.model.temperature == pytest.approx(calibration.temperature(logits, valid_labels, 1 / 202))


CHINESE = ["足球比赛", "股票市场", "电影演员"]
"""Topics, written without blanks."""


@pytest.mark.parametrize("length", [20, 800])
def test_choose_takes_letters_of_a_script_without_blanks_as_words(length: int) -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(150) % 3
    filler = "的一是在不了有和人这中大为上个国我以要他"
    texts = ["".join(draw.choice([*filler, *CHINESE[label]], length)) + "。" for label in labels]
    choice = choose(texts[:100], labels[:100], texts[100:], labels[100:], num_labels=3)
    assert choice.model.analyzer.characters is None
    assert choice.candidates[0].score > 0.9


def test_choose_model_without_an_error_on_few_rows_is_confident() -> None:
    texts, labels = make(100)
    valid_texts, valid_labels = make(8, seed=1)
    model = choose(texts, labels, valid_texts, valid_labels, num_labels=3).model
    assert (model.logits(valid_texts).argmax(axis=1) == valid_labels).all()
    assert 0.05 < model.temperature < 0.6  # without smoothing the rows would say nothing


def test_share_by_macro_f1_keeps_the_rare_label_that_a_balanced_network_finds() -> None:
    draw = np.random.default_rng(0)
    labels = (np.arange(600) % 20 == 0).astype(np.int64)
    texts = [" ".join(draw.choice([f"word{number}" for number in range(30)], 8)) for _ in labels]
    choice = choose(texts[:300], labels[:300], texts[300:], labels[300:], num_labels=2)  # always the frequent label
    rare = np.where(labels[300:], draw.normal(0.8, 0.7, 300), draw.normal(-0.8, 0.7, 300))
    logits = np.stack([-rare, rare], axis=1).astype(np.float32)

    def f1(by_macro_f1: bool) -> float:
        found = fitting.share(choice, texts[300:], logits, labels[300:], by_macro_f1)
        together = found.blended(logits, found.scores(texts[300:])) if found else logits
        return fitting._score(together, labels[300:], True)

    assert f1(True) > max(f1(False), fitting._score(logits, labels[300:], True)) + 0.02


def test_choose_of_equal_scores_takes_the_lower_loss() -> None:
    texts, labels = make(300)
    choice = choose(texts[:200], labels[:200], texts[200:], labels[200:], num_labels=3)
    equal = [candidate for candidate in choice.candidates if candidate.score == 1.0]
    assert len(equal) > 1
    best = min(equal, key=lambda candidate: candidate.loss)
    logits = choice.model.logits(texts[200:]) / np.float32(choice.model.temperature)
    assert best.loss == pytest.approx(fitting._loss(logits, labels[200:]))


def test_fit_label_of_no_row_is_no_worse_than_the_opposite_of_a_certain_one() -> None:
    texts, labels = make(300)
    counts = count(texts, WORDS)
    model = fit(counts, labels, num_labels=4, analyzer=WORDS, weighting="tfidf", cost=1.0)
    assert model.bias[3] == -fitting.MARGIN
    assert (model.logits(["", "unknown", *texts]).argmax(axis=1) < 3).all()


@pytest.mark.parametrize(("words", "expected"), [(10, [(2, True), (2, True)]), (200, [(2, False), (3, False)])])
def test_choose_counts_characters_of_short_texts_alone(
    monkeypatch: pytest.MonkeyPatch, words: int, expected: list[tuple[int, bool]]
) -> None:
    texts, labels = make(60)
    texts = [" ".join([text] * (words // len(text.split()) + 1)) for text in texts]
    seen: dict[str, Analyzer] = {}

    def fitted(*given: Any, **settings: Any) -> Any:
        seen[settings["weighting"]] = settings["analyzer"]
        return fit(*given, **settings)

    monkeypatch.setattr(fitting, "fit", fitted)
    choose(texts[:40], labels[:40], texts[40:], labels[40:], num_labels=3)
    assert [(analyzer.words, analyzer.characters is not None) for analyzer in seen.values()] == expected


def test_refit_trains_the_chosen_setting_on_other_rows() -> None:
    texts, labels = make(300)
    choice = choose(texts[:200], labels[:200], texts[200:], labels[200:], num_labels=3)
    again = fitting.refit(choice, texts[:200], labels[:200], num_labels=3)
    assert (again.weighting, again.analyzer) == (choice.model.weighting, choice.model.analyzer)
    assert np.array_equal(again.weights, choice.model.weights)
    other = fitting.refit(choice, texts[100:], labels[100:], num_labels=3)
    assert np.array_equal(other.logits(texts[:100]).argmax(axis=1), labels[:100])


def test_choose_without_validation_rows_tries_one_setting() -> None:
    texts, labels = make(300)
    choice = choose(texts, labels, [], labels[:0], num_labels=3)
    assert len(choice.candidates) == 1
    scored, truth = make(200, seed=1)
    assert (choice.model.logits(scored).argmax(axis=1) == truth).mean() > 0.95


def test_choose_label_sets() -> None:
    texts, topics = make(400)
    targets = np.stack([topics == 0, topics != 1, np.zeros(400, np.bool_)], axis=1)
    choice = choose(texts[:300], targets[:300], texts[300:], targets[300:], num_labels=3)
    found = choice.model.logits(texts[300:]) > 0
    assert (found == targets[300:]).mean() > 0.95
    assert not found[:, 2].any()


@pytest.mark.parametrize("weighting", ["tfidf", "naive bayes"])
def test_fit_weights_of_two_classes_mirror_each_other(weighting: Any) -> None:
    texts = ["not good but bad", "bad but not good", "good but not bad", "not bad but good"] * 10
    labels = np.array([0, 0, 1, 1] * 10)
    pairs = Analyzer(words=2)
    model = fit(count(texts, pairs), labels, num_labels=2, analyzer=pairs, weighting=weighting, cost=1.0)
    assert model.logits(["it was not good", "it was not bad"]).argmax(axis=1).tolist() == [0, 1]
    assert np.array_equal(model.weights[:, 0], -model.weights[:, 1])
    assert np.array_equal(model.weights, model.weights.astype(np.float16))


@pytest.mark.parametrize(
    ("texts", "labels"),
    [(["a b", "c d", "e"], [1, 1, 1]), (["", " ", "\t"], [0, 1, 1]), ([], []), (["a"], [2])],
)
def test_choose_degenerate_rows_predicts_the_most_frequent_class(texts: list[str], labels: list[int]) -> None:
    choice = choose(texts, np.array(labels, np.int64), [], np.empty(0, np.int64), num_labels=3)
    logits = choice.model.logits(["a b", "unknown", ""])
    assert np.isfinite(logits).all()
    if labels:
        assert logits[1:].argmax(axis=1).tolist() == [max(set(labels), key=labels.count)] * 2


def test_fit_keeps_the_ngrams_of_most_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["often rare1", "often rare2", "often twice", "twice"] * 2
    monkeypatch.setattr(fitting, "MIN_FEATURES", 2)
    monkeypatch.setattr(fitting, "MAX_WEIGHTS", 4)
    kept = fitting.kept(count(texts, WORDS), 2)
    assert np.array_equal(kept.keys, count(["often", "twice"], WORDS).keys)
    assert kept.matrix.sum() == 10


def test_choose_many_texts_uses_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = make(300)
    monkeypatch.setattr(fitting, "MAX_SHORT_CHARS", sum(map(len, texts[:100])))
    some = choose(texts, labels, [], labels[:0], num_labels=3)
    assert some.train_rows == 100
    assert np.array_equal(
        some.model.weights, choose(texts[:100], labels[:100], [], labels[:0], num_labels=3).model.weights
    )


def test_share_blend_is_better_than_either_alone() -> None:
    logits = noisy(2.0)
    found = fitting.share(small_choice(), TEXTS, logits, LABELS)
    assert found
    share = found.share
    assert 0 < share.weight < 1
    assert share.loss < min(share.network_loss, share.ngram_loss)
    together = found.blended(logits, found.scores(TEXTS))
    expected = -(together - np.log(np.exp(together).sum(axis=1, keepdims=True)))[np.arange(300), LABELS].mean()
    assert share.loss == pytest.approx(expected, rel=1e-5)
    assert (together.argmax(axis=1) == LABELS).mean() > (logits.argmax(axis=1) == LABELS).mean()


def test_share_certain_network_answers_alone() -> None:
    choice = small_choice()
    useless = replace(choice.model, weights=np.zeros_like(choice.model.weights))
    few, many = (np.arange(len(LABELS)).repeat(times) for times in (1, 50))
    for rows, expected in ((few, True), (many, False)):  # a hundred rows leave a doubt
        blend = fitting.share(choice._replace(model=useless), [TEXTS[i] for i in rows], noisy(2.0)[rows], LABELS[rows])
        assert (blend is not None) == expected
        assert blend is None or blend.share.weight < 0.3


def test_share_of_a_few_rows_is_near_the_usual_one() -> None:
    choice = small_choice()
    blend = fitting.share(choice, TEXTS[:3], noisy(2.0)[:3], LABELS[:3])
    assert blend is not None
    assert abs(blend.share.weight - fitting.USUAL_SHARE) < 0.2


def test_share_network_without_knowledge_leaves_the_answers_to_the_ngrams() -> None:
    found = fitting.share(small_choice(), TEXTS, np.zeros((300, 3), np.float32), LABELS)
    assert found
    together = found.blended(np.zeros((300, 3), np.float32), found.scores(TEXTS))
    assert (together.argmax(axis=1) == small_choice().model.logits(TEXTS).argmax(axis=1)).all()


def test_share_label_sets_pool_logits() -> None:
    targets = np.stack([LABELS == 0, LABELS != 1], axis=1)
    choice = choose(TEXTS[:150], targets[:150], [], targets[:0], num_labels=2)
    logits = (2.0 * targets - 1 + np.random.default_rng(0).normal(size=targets.shape)).astype(np.float32)
    found = fitting.share(choice, TEXTS, logits, targets)
    assert found
    together = found.blended(logits, found.scores(TEXTS))
    expected = np.where(targets, np.log1p(np.exp(-together)), np.log1p(np.exp(together))).mean()
    assert found.share.loss == pytest.approx(expected, rel=1e-5)


def test_choose_too_much_work_tries_fewer_costs_then_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = make(300)
    valid_texts, valid_labels = make(100, seed=1)
    whole = count(texts, Analyzer(words=2, characters=(2, 5))).matrix.nnz * 3
    monkeypatch.setattr(fitting, "MAX_WORK", 1.5 * whole)
    fewer = choose(texts, labels, valid_texts, valid_labels, num_labels=3)
    assert [candidate.cost for candidate in fewer.candidates if candidate.weighting == "tfidf"] == [0.3]
    assert fewer.train_rows == 300
    monkeypatch.setattr(fitting, "MAX_WORK", whole / 3)
    assert choose(texts, labels, valid_texts, valid_labels, num_labels=3).train_rows == 100
