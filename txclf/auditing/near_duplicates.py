"""Texts that occur several times, nearly: groups of rows whose words and word pairs are mostly the same.

Candidates come from MinHash (Broder, 1997) with banding: `BANDS` bands of `BAND_SIZE` minima, so that texts with a
similarity of 0.8 meet in a band in 99.98 % of the cases. The similarity of each candidate pair is then computed
exactly. Rows that meet in a band are compared with the first one and with the previous one there, not all with all.
Memory holds one number per row and band.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from txclf.core.hashing import UInt64s, mix
from txclf.ngrams.features import Analyzer, count

Ints = npt.NDArray[np.int64]
SIMILARITY = 0.8
"""Least Jaccard similarity of the sets of words and word pairs of two near-duplicates."""
BANDS, BAND_SIZE = 16, 4
CHUNK = 4096
"""Rows, or pairs of rows, that are hashed or compared at a time."""
_ANALYZER = Analyzer(words=2)


def normalized(text: str) -> str:
    """Return a text without differences in case, whitespace and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def groups(texts: Sequence[str]) -> Ints:
    """Return the number of the group of each normalized text (rows,): that of its near-duplicates.

    Groups are numbered by their first rows. The relation is extended: a text is in the group of each near-duplicate.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = _candidates(_bands(texts))
    kept = np.concatenate(
        [np.zeros((0, 2), np.int64), *(_similar(texts, pairs[at : at + CHUNK]) for at in range(0, len(pairs), CHUNK))]
    )
    graph = coo_matrix((np.ones(len(kept), np.bool_), (kept[:, 0], kept[:, 1])), shape=(len(texts), len(texts)))
    found: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def _bands(texts: Sequence[str]) -> UInt64s:
    """Return a hash of the minima of each band (rows, bands)."""
    parts = [_chunk_bands(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
    return np.concatenate([np.zeros((0, BANDS), np.uint64), *parts])


def _chunk_bands(texts: Sequence[str]) -> UInt64s:
    keys, matrix = count(texts, _ANALYZER)
    filled = np.flatnonzero(np.diff(matrix.indptr))  # a text of invisible characters has no words
    bands = np.zeros((len(texts), BANDS), np.uint64)
    for band in range(BANDS) if len(filled) else ():
        for place in range(BAND_SIZE):
            hashes = mix(keys ^ mix(np.uint64(band * BAND_SIZE + place + 1)))[matrix.indices]
            minima = np.minimum.reduceat(hashes, matrix.indptr[filled])
            bands[filled, band] = mix(bands[filled, band] ^ minima)
    return bands


def _candidates(bands: UInt64s) -> Ints:
    """Return the distinct pairs of rows (pairs, 2) to compare."""
    rows = np.arange(len(bands))
    pairs = [np.zeros((0, 2), np.int64)]
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        is_first = np.concatenate([[True], band[order][1:] != band[order][:-1]])[: len(order)]
        first = order[np.maximum.accumulate(np.where(is_first, rows, 0))]
        previous = np.roll(order, 1)
        others = ~is_first
        pairs += [np.stack([start[others], order[others]], axis=1) for start in (first, previous)]
    return np.unique(np.concatenate(pairs), axis=0)


def _similar(texts: Sequence[str], pairs: Ints) -> Ints:
    """Return the pairs whose similarity is at least `SIMILARITY`."""
    rows, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    matrix = count([texts[i] for i in rows], _ANALYZER).matrix
    matrix.data[:] = 1
    sizes = np.diff(matrix.indptr)
    shared = np.asarray(matrix[places[:, 0]].multiply(matrix[places[:, 1]]).sum(axis=1)).ravel()
    either = sizes[places].sum(axis=1) - shared
    kept: Ints = pairs[(shared >= SIMILARITY * either) & (either > 0)]
    return kept
