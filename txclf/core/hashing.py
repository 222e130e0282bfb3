"""Hashes as random numbers: a draw depends on its key only, not on the process or the order of draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]


def mix(values: UInt64s | np.uint64) -> UInt64s:
    """Mix the bits with the finalizer of splitmix64 (Steele, Lea and Flood, 2014).

    Every input bit changes half of the output bits on average.
    """
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def uniform(hashes: UInt64s) -> npt.NDArray[np.float64]:
    """Return hashes as numbers in [0, 1)."""
    return hashes.astype(np.float64) / 2.0**64
