"""Sections of the run file: sizes that fit, truncation, workers."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from txclf.config.run_config import RunConfig
from txclf.config.search_space import Domain, Scheduler, Tune
from txclf.config.sections import Compute, Data, Generate, Model, Tokenizer, Truncation
from txclf.config.train import Train


@pytest.mark.parametrize(
    ("mode", "overlap", "windows", "capacity", "described"),
    [
        ("head", 0, 1, 256, "the first 256 tokens"),
        ("tail", 0, 1, 256, "the last 256 tokens"),
        ("head_tail", 0, 1, 256, "the first and last tokens, 256 together,"),
        ("windows", 56, 4, 856, "at most 4 windows of 256 tokens"),
    ],
)
def test_truncation_capacity_and_description(
    mode: str, overlap: int, windows: int, capacity: int, described: str
) -> None:
    truncation = Truncation.model_validate({"mode": mode, "window_overlap": overlap, "max_windows": windows})
    assert truncation.capacity(256) == capacity
    assert truncation.describe(256) == described


@pytest.mark.parametrize(
    ("workers", "low", "high", "elastic", "on_ray"),
    [(0, 0, 0, False, False), (3, 3, 3, False, True), ([2, 8], 2, 8, True, True)],
)
def test_compute_workers_give_minimum_and_maximum(
    workers: int | list[int], low: int, high: int, elastic: bool, on_ray: bool
) -> None:
    compute = Compute.model_validate({"workers": workers})
    assert (compute.min_workers, compute.max_workers) == (low, high)
    assert (compute.elastic, compute.on_ray) == (elastic, on_ray)


def test_compute_maximum_before_minimum_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"`workers: \[8, 2\]`: the minimum must come first"):
        Compute.model_validate({"workers": [8, 2]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 100, "num_heads": 8}, r"`num_heads` \(8\) must divide `hidden_size` \(100\)"),
        ({"hidden_size": 12, "num_heads": 4}, "`position_encoding: rotary` needs an even"),
        ({"freeze_word_vectors": True}, "`freeze_word_vectors` needs `word_vectors`"),
    ],
)
def test_model_sizes_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Model.model_validate(settings)


@pytest.mark.parametrize("settings", [{"kind": "file"}, {"file": "tokenizer.json"}])
def test_tokenizer_file_and_kind_require_each_other(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="require each other"):
        Tokenizer.model_validate(settings)


@pytest.mark.parametrize(
    "section", [RunConfig, Data, Tokenizer, Model, Train, Generate, Compute, Tune, Scheduler, Domain]
)
def test_description_of_each_key_is_a_sentence(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        text = field.description or ""
        assert text, name
        assert text[0].isupper() or text[0] == "`", f"{name}: {text}"
        assert text.endswith("."), f"{name}: {text}"
        assert not text.startswith(("Whether", "What", "Of ", "As ")), f"{name}: {text}"
