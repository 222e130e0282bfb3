"""A worker's threads and GPUs, and a GPU that PyTorch cannot use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from txclf.config.sections import Compute
from txclf.core import devices
from txclf.core.errors import ClusterError
from txclf.data.actor_pool import Actor


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the threads and the visible GPUs of this process after the test."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"), [(0.5, 0, (1, "")), (2.5, 0, (2, "")), (1, 0.5, (1, "0"))], ids=str
)
def test_take_sets_the_threads_and_hides_gpus_of_others(cpus: float, gpus: float, expected: tuple[int, str]) -> None:
    devices.take(cpus, gpus)
    assert (torch.get_num_threads(), os.environ["CUDA_VISIBLE_DEVICES"]) == expected


@pytest.mark.usefixtures("threads")
def test_require_a_gpu_that_cannot_be_used_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices.require(0)
    with pytest.raises(ClusterError, match=r"Ray has a GPU on node .*, but PyTorch .* cannot use it there"):
        devices.require(1)
    actor = Actor[str, str](lambda: str.upper, Compute(workers=1, gpus_per_worker=1))
    with pytest.raises(ClusterError, match="cannot use it there"):
        actor.model  # noqa: B018
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices.require(1)
    assert actor.model("a") == "A"
