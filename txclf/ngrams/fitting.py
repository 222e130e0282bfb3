"""Training of linear models on n-grams, and of their share beside a network.

One support vector machine per label, against the rest (liblinear; Fan et al., JMLR 2008). `choose` takes the features
and the cost of errors that score best on validation rows, and fits a temperature there (Guo et al., ICML 2017), with
targets that are a little smoothed (Platt, 1999): a machine that makes no error on a few rows is not certain.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.core.words import unspaced_share
from txclf.metrics import calibration, multiclass
from txclf.metrics.calibration import Labels
from txclf.ngrams.blend import Blend, NgramShare, calibrated, pooled
from txclf.ngrams.features import Analyzer, Counts, count
from txclf.ngrams.linear import Floats, NgramModel, Weighting, features

Bools = npt.NDArray[np.bool_]

LONG_CHARS = 500
"""Mean characters of a text from which on character n-grams are left out: they add time and no accuracy."""
UNSPACED_SHARE, SCRIPT_ROWS = 0.5, 1000
"""Share of the characters of the first texts that are of scripts without blanks between words from which on they are
left out too, as each of them is a word."""
MAX_ROWS = 100_000
"""Max training rows to read for a linear model."""
MAX_SHORT_CHARS, MAX_LONG_CHARS = 12_000_000, 40_000_000
"""Max characters of the training texts, if they are short or have a word per character, and of other long ones. The
texts after them are left out."""
MARGIN = 2.0
"""Logit of a label that every training row has, negative of one that none has: beyond that of a clear case, 1."""
MANY_ROWS = 10_000
"""Training rows from which on an n-gram must occur in two of them."""
MAX_WEIGHTS, MIN_FEATURES, MAX_FEATURES = 2**24, 2**13, 2**20
"""Max weights of a model, and the bounds of the n-grams that follow from it and the number of labels."""
MAX_WORK = 1e9
"""Max counts times labels times costs for one kind of features, about a minute: beyond it fewer costs are tried, then
fewer rows used."""
SHARES = np.linspace(0.0, 1.0, 21)
"""Weights of the linear model that are tried."""
USUAL_SHARE, CERTAINTY = 0.85, 10.0
"""Weight that few validation rows hardly change, and the summed loss by which a weight that differs by 1 is worse."""


class Candidate(NamedTuple):
    """Result of one setting on the validation rows."""

    weighting: Weighting
    cost: float
    score: float
    """Accuracy or macro F1; of several labels per text, the negative mean log loss."""
    loss: float
    """Mean log loss."""

    @property
    def rank(self) -> tuple[float, float]:
        """The greater, the better; of equal scores, the lower loss."""
        return self.score, -self.loss


class Choice(NamedTuple):
    """The best model and all that were tried."""

    model: NgramModel
    candidates: list[Candidate]
    train_rows: int
    """Training rows used: the first ones."""


def choose(
    train_texts: Sequence[str],
    train_labels: Labels,
    valid_texts: Sequence[str],
    valid_labels: Labels,
    *,
    num_labels: int,
    lowercase: bool = True,
    by_macro_f1: bool = False,
) -> Choice:
    """Train linear classifiers and return the one that is best on the validation rows, calibrated there.

    Labels are class ids (rows,), or a mask of the labels of each row (rows, labels). The best has the highest accuracy,
    or macro F1, or the lowest loss if texts have several labels. Without validation rows the middle cost of the first
    features is taken. Of very many texts the first are used, as far as `MAX_SHORT_CHARS`, `MAX_LONG_CHARS` and
    `MAX_WORK` go.
    """
    chars = np.cumsum(list(map(len, train_texts)))
    is_long = len(chars) > 0 and bool(chars[-1] > LONG_CHARS * len(chars))
    is_unspaced = unspaced_share(train_texts[:SCRIPT_ROWS]) > UNSPACED_SHARE
    words_alone = is_long or is_unspaced
    most_chars = MAX_LONG_CHARS if is_long and not is_unspaced else MAX_SHORT_CHARS
    rows = int(np.searchsorted(chars, most_chars, side="right"))
    train_texts, train_labels = train_texts[:rows], train_labels[:rows]
    best: tuple[Candidate, NgramModel, int] | None = None
    tried: list[Candidate] = []
    counts: Counts | None = None
    for weighting, analyzer, costs in _settings(words_alone, lowercase):
        if best is not None and not valid_texts:
            break
        if counts is None or words_alone:
            counts = kept(count(train_texts, analyzer), num_labels)
            affordable = MAX_WORK / max(1, counts.matrix.nnz * num_labels)
            if affordable < 1:
                rows = min(rows, int(affordable * len(train_texts)))
                counts = Counts(counts.keys, counts.matrix[:rows])
            labels, valid_counts = train_labels[: counts.matrix.shape[0]], count(valid_texts, analyzer, counts.keys)
        for cost in costs if valid_texts and affordable >= len(costs) else costs[1:2]:
            model = fit(counts, labels, num_labels=num_labels, analyzer=analyzer, weighting=weighting, cost=cost)
            found = Candidate(weighting, cost, 0.0, 0.0)
            if valid_texts:
                logits = model.scored(valid_counts)
                smoothing = 1 / (len(valid_texts) + 2)
                model = replace(model, temperature=calibration.temperature(logits, valid_labels, smoothing))
                scaled = logits / np.float32(model.temperature)
                found = Candidate(
                    weighting, cost, _score(scaled, valid_labels, by_macro_f1), _loss(scaled, valid_labels)
                )
            tried.append(found)
            if best is None or found.rank > best[0].rank:
                best = found, model, counts.matrix.shape[0]
    assert best is not None
    return Choice(best[1], tried, best[2])


def _settings(words_alone: bool, lowercase: bool) -> list[tuple[Weighting, Analyzer, tuple[float, ...]]]:
    """Return what is tried: weightings, n-grams (the same for all, if they have characters) and costs of errors."""
    if words_alone:
        pairs, triples = Analyzer(words=2, lowercase=lowercase), Analyzer(words=3, lowercase=lowercase)
        return [("tfidf", pairs, (0.1, 0.3, 1.0)), ("naive bayes", triples, (0.3, 1.0, 3.0))]
    short = Analyzer(words=2, characters=(2, 5), lowercase=lowercase)
    return [("tfidf", short, (0.1, 0.3, 1.0)), ("naive bayes", short, (0.3, 1.0))]


def refit(choice: Choice, texts: Sequence[str], labels: Labels, *, num_labels: int) -> NgramModel:
    """Train a model with the chosen features and cost on other rows, as many as `choice` used at most."""
    best = max(choice.candidates, key=lambda candidate: candidate.rank)  # the first of several, as `choose` does
    texts, labels, analyzer = texts[: choice.train_rows], labels[: choice.train_rows], choice.model.analyzer
    counts = kept(count(texts, analyzer), num_labels)
    return fit(counts, labels, num_labels=num_labels, analyzer=analyzer, weighting=best.weighting, cost=best.cost)


def _score(logits: Floats, labels: Labels, by_macro_f1: bool) -> float:
    """Return the accuracy or macro F1 of logits, or of several labels per text their negative mean log loss."""
    if labels.ndim == 2:
        return -_loss(logits, labels)
    name = "f1_macro" if by_macro_f1 else "accuracy"
    return multiclass.short_scores(logits.argmax(axis=1), labels.astype(np.int64), logits.shape[1])[name]


def fit(
    counts: Counts, labels: Labels, *, num_labels: int, analyzer: Analyzer, weighting: Weighting, cost: float
) -> NgramModel:
    """Train one support vector machine per label on counts (rows, n-grams).

    A label of no row or of every row gets a constant logit, as does every label if there are no n-grams.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    targets: Bools = labels.astype(np.bool_) if labels.ndim == 2 else np.eye(num_labels, dtype=np.bool_)[labels]
    rows, num = counts.matrix.shape
    matrix, scale = weighted(counts, weighting)
    weights, bias = np.zeros((num, num_labels), np.float32), np.zeros(num_labels, np.float32)
    is_pair = num_labels == 2 and labels.ndim == 1
    for label in range(num_labels):
        target = targets[:, label]
        if is_pair and label == 0:
            continue
        if not num:
            bias[label] = np.log((target.sum() + 0.5) / (rows - target.sum() + 0.5)) if rows else 0.0
            continue
        if target.all() or not target.any():
            bias[label] = MARGIN if target.all() else -MARGIN
            continue
        ratio = _log_count_ratio(counts, target) if weighting == "naive bayes" else None
        machine = LinearSVC(C=cost, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit(matrix if ratio is None else _columns_scaled(matrix, ratio), target)
        coefficients = machine.coef_[0].astype(np.float32)
        weights[:, label] = coefficients if ratio is None else coefficients * ratio
        bias[label] = machine.intercept_[0]
    if is_pair:
        weights[:, 0], bias[0] = -weights[:, 1], -bias[1]
    weights = weights.astype(np.float16).astype(np.float32)  # as they are stored
    return NgramModel(analyzer, weighting, counts.keys, scale, weights, bias)


def weighted(counts: Counts, weighting: Weighting) -> tuple[Any, Floats]:
    """Return the features (rows, n-grams) of training rows, and the scale of each n-gram (n-grams,) that they give."""
    rows, num = counts.matrix.shape
    scale = np.ones(num, np.float32)
    if weighting == "tfidf":
        scale = (np.log((1 + rows) / (1 + _document_frequencies(counts))) + 1).astype(np.float32)
    return features(counts, weighting, scale), scale


def kept(counts: Counts, num_labels: int) -> Counts:
    """Return the counts of the n-grams that occur in most rows, as many as a model may have."""
    frequencies = _document_frequencies(counts)
    most = int(np.clip(MAX_WEIGHTS // num_labels, MIN_FEATURES, MAX_FEATURES))
    is_kept = frequencies >= (2 if counts.matrix.shape[0] >= MANY_ROWS else 1)
    if is_kept.sum() > most:
        order = np.argsort(-frequencies, kind="stable")[:most]
        is_kept = np.zeros(len(frequencies), np.bool_)
        is_kept[order] = True
    return counts if is_kept.all() else Counts(counts.keys[is_kept], counts.matrix[:, np.flatnonzero(is_kept)])


def _document_frequencies(counts: Counts) -> npt.NDArray[np.int64]:
    """Return the number of rows with each n-gram (n-grams,)."""
    return np.bincount(counts.matrix.indices, minlength=len(counts.keys))


def _log_count_ratio(counts: Counts, target: Bools) -> Floats:
    """Return the log ratio of the shares of each n-gram in the rows with and without a label, add-one smoothed."""
    present = np.repeat(target, np.diff(counts.matrix.indptr))
    positive = 1 + np.bincount(counts.matrix.indices, present, minlength=len(counts.keys))
    negative = 1 + np.bincount(counts.matrix.indices, ~present, minlength=len(counts.keys))
    ratio: Floats = np.log(positive / positive.sum() / (negative / negative.sum())).astype(np.float32)
    return ratio


def _columns_scaled(matrix: Any, scale: Floats) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((matrix.data * scale[matrix.indices], matrix.indices, matrix.indptr), shape=matrix.shape)


def share(
    choice: Choice, texts: Sequence[str], logits: Floats, labels: Labels, by_macro_f1: bool = False
) -> Blend | None:
    """Return the blend of a network and a linear model that is best on validation rows: by the loss, or macro F1.

    `logits` (rows, labels) are those of the network for the texts. Returns None if the network is better alone. Sets of
    labels are always compared by the loss. A few rows prove little, so the weight has a normal prior (`USUAL_SHARE`).
    """
    model, is_multilabel = choice.model, labels.ndim == 2
    network_temperature = calibration.temperature(logits, labels, 1 / (len(labels) + 2))
    network = calibrated(logits, network_temperature, is_multilabel)
    linear = calibrated(model.logits(texts), model.temperature, is_multilabel)
    together = [pooled(network, linear, weight) for weight in SHARES]
    losses = [_loss(one, labels) for one in together]
    doubt = CERTAINTY * (SHARES - USUAL_SHARE) ** 2 / max(1, labels.size)
    best = int(np.argmin(losses + doubt))
    if by_macro_f1 and not is_multilabel:  # rare labels count little in the loss
        scores = [_score(one, labels, by_macro_f1) for one in together] - doubt
        best = max(range(len(SHARES)), key=lambda number: (scores[number], -losses[number]))
    if best == 0:
        return None
    found = NgramShare(
        analyzer=model.analyzer,
        weighting=model.weighting,
        weight=float(SHARES[best]),
        temperature=model.temperature,
        network_temperature=network_temperature,
        train_rows=choice.train_rows,
        network_loss=losses[0],
        ngram_loss=losses[-1],
        loss=losses[best],
    )
    return Blend(found, model, is_multilabel)


def _loss(logits: Floats, labels: Labels) -> float:
    """Return the mean cross-entropy of logits (rows, labels)."""
    if labels.ndim == 2:
        return float(np.logaddexp(0, np.where(labels, -logits, logits), dtype=np.float64).mean())
    logs = calibrated(logits, 1.0, False)
    return -float(logs[np.arange(len(labels)), labels].mean(dtype=np.float64))
