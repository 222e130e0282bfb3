"""Hashes as random numbers."""

from __future__ import annotations

import numpy as np

from txclf.core.hashing import mix, uniform


def test_mix_known_value_of_splitmix64() -> None:
    # First output of splitmix64 with seed 0.
    assert int(mix(np.uint64(0))) == 0xE220A8397B1DCDAF


def test_mix_distinct_values_stay_distinct() -> None:
    values = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mix(values))) == len(values)


def test_mix_one_input_bit_changes_half_of_the_output_bits() -> None:
    values = np.arange(2000, dtype=np.uint64)
    for bit in (0, 31, 63):
        changed = mix(values) ^ mix(values ^ np.uint64(1 << bit))
        share = np.unpackbits(changed.view(np.uint8)).mean()
        assert 0.49 < share < 0.51


def test_uniform_hashes_are_even_in_the_unit_interval() -> None:
    numbers = uniform(mix(np.arange(100_000, dtype=np.uint64)))
    assert 0.0 <= numbers.min() <= numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert np.abs(counts - 10_000).max() < 500
