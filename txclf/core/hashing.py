"""Hashes as random numbers: whatever is drawn by them depends on its key alone, not on who draws or in what order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]


def mix(values: UInt64s | np.uint64) -> UInt64s:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every input bit changes half of the output bits."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def uniform(hashes: UInt64s) -> npt.NDArray[np.float64]:
    """Hashes as numbers in [0, 1)."""
    return hashes.astype(np.float64) / 2.0**64
