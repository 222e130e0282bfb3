"""How near each row is to another training row: rows that are like no other are new topics, noise or other languages.

The similarity of two texts is the cosine of their words' TF-IDF vectors: 1 for the same words, 0 without a common one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from txclf.ngrams.features import Analyzer, count
from txclf.ngrams.fitting import weighted
from txclf.ngrams.linear import Floats

MAX_REFERENCES = 20_000
"""Training rows that the others are compared with: the first ones, which are drawn at random."""
MAX_WORDS = 32
"""Words of a text that are compared: those with the largest weights."""
CHUNK = 256
"""Rows that are compared at a time."""

Bools = npt.NDArray[np.bool_]


def similarity(texts: Sequence[str], is_training: Bools, *, lowercase: bool = True) -> Floats:
    """Return the similarity of each text to the training text, other than itself, that is most like it (rows,).

    `is_training` (rows,) marks the training texts.
    """
    counts = count(texts, Analyzer(words=1, lowercase=lowercase))
    matrix = _heaviest(weighted(counts, "tfidf")[0])
    references = np.flatnonzero(is_training)[:MAX_REFERENCES]
    transposed = matrix[references].T.tocsr()
    place = np.full(len(texts), -1, np.int64)
    place[references] = np.arange(len(references))
    found = np.zeros(len(texts), np.float32)
    if not len(references):
        return found
    for start in range(0, len(texts), CHUNK):
        near = (matrix[start : start + CHUNK] @ transposed).toarray()
        own = place[start : start + CHUNK]
        near[np.flatnonzero(own >= 0), own[own >= 0]] = 0
        found[start : start + CHUNK] = near.max(axis=1)
    return np.minimum(found, 1, dtype=np.float32)


def _heaviest(matrix: Any) -> Any:
    """Return the rows of a CSR matrix with their `MAX_WORDS` largest values only, of length 1."""
    from scipy.sparse import csr_matrix

    sizes = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(matrix.shape[0]), sizes)
    order = np.lexsort((-matrix.data, rows))
    rank = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], sizes)
    kept = np.sort(order[rank < MAX_WORDS])
    data, rows = matrix.data[kept], rows[kept]
    norms = np.sqrt(np.bincount(rows, data**2, minlength=matrix.shape[0]))
    return csr_matrix(((data / norms[rows]).astype(np.float32), (rows, matrix.indices[kept])), shape=matrix.shape)
