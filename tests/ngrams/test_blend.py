"""Blends of a network and a linear model: stored and damaged weights."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.helpers.topics import LABELS, TEXTS, noisy, small_choice
from txclf.ngrams import blend, fitting


def test_loaded_blend_gives_the_same_answers() -> None:
    logits = noisy(2.0)
    found = fitting.share(small_choice(), TEXTS, logits, LABELS)
    assert found
    again = blend.loaded(found.share, found.content(), 3, False)
    assert np.array_equal(again.scores(TEXTS), found.scores(TEXTS))
    assert np.array_equal(again.blended(logits, again.scores([*TEXTS])), found.blended(logits, found.scores(TEXTS)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("keys", "not ascending"), ("scale", "not finite"), ("weights", "do not fit"), ("bias", "other names or types")],
)
def test_loaded_damaged_weights_raise(name: str, message: str) -> None:
    found = fitting.share(small_choice(), TEXTS, noisy(2.0), LABELS)
    assert found
    tensors = dict(load(found.content()))
    damaged = {
        "keys": tensors["keys"][::-1].copy(),
        "scale": np.full_like(tensors["scale"], np.nan),
        "weights": tensors["weights"][:, :2].copy(),
        "bias": tensors["bias"].astype(np.float64),
    }[name]
    with pytest.raises(ValueError, match=message):
        blend.loaded(found.share, save({**tensors, name: damaged}), 3, False)
    with pytest.raises(ValueError, match=r"."):
        blend.loaded(found.share, b"damaged", 3, False)
