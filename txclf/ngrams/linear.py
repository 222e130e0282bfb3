"""Linear classifiers on n-gram counts: the strongest cheap model of a text, and of each label its exact reasons.

tfidf          sublinear TF-IDF, rows of length 1 in each block, words and characters
naive bayes    0 or 1, rows of length 1 alike, each n-gram weighted by its log-count ratio (Wang and Manning, ACL 2012)

Of short texts, the n-grams are words, word pairs and 2 to 5 characters; of long ones words, pairs, and for naive Bayes
triples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from txclf.core.hashing import UInt64s
from txclf.ngrams.features import Analyzer, Counts, count, is_characters, spans

Floats = npt.NDArray[np.float32]
Weighting = Literal["tfidf", "naive bayes"]


@dataclass(frozen=True)
class NgramModel:
    """Linear classifier on n-gram counts."""

    analyzer: Analyzer
    weighting: Weighting
    keys: UInt64s
    """Hashes of the n-grams (n-grams,), ascending."""
    scale: Floats
    """Inverse document frequency of each n-gram (n-grams,); ones for naive Bayes."""
    weights: Floats
    """(n-grams, labels)"""
    bias: Floats
    """(labels,)"""
    temperature: float = 1.0

    def logits(self, texts: Sequence[str]) -> Floats:
        """Return the logits (rows, labels) of texts, before calibration."""
        return self.scored(count(texts, self.analyzer, self.keys))

    def scored(self, counts: Counts) -> Floats:
        """Return the logits (rows, labels) of counts that have exactly the keys of the model."""
        return np.asarray(features(counts, self.weighting, self.scale) @ self.weights + self.bias, np.float32)

    def contributions(self, text: str) -> dict[str, Floats]:
        """Return what each known n-gram of a text adds to the logits (labels,); with `bias` they sum to the logits."""
        names = {key: name for name, key in spans(text, self.analyzer)}
        row = features(count([text], self.analyzer, self.keys), self.weighting, self.scale)
        found: dict[str, Floats] = {}
        for column, value in zip(row.indices.tolist(), row.data.tolist(), strict=True):
            name = names[int(self.keys[column])]  # a short word is also the characters of one
            found[name] = found.get(name, np.float32(0)) + self.weights[column] * np.float32(value)
        return found


def features(counts: Counts, weighting: Weighting, scale: Floats) -> Any:
    """Return the features (rows, n-grams) of counts as a CSR matrix; words and characters have length 1 each."""
    from scipy.sparse import csr_matrix

    matrix = counts.matrix
    data = 1 + np.log(matrix.data) if weighting == "tfidf" else np.ones_like(matrix.data)
    data = data * scale[matrix.indices]
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    group = 2 * rows + is_characters(counts.keys)[matrix.indices]
    norms = np.sqrt(np.bincount(group, data**2, minlength=2 * matrix.shape[0]))
    return csr_matrix(((data / norms[group]).astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
