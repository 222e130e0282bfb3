"""The actor of a pool, in this process; the whole pool is tried by prediction and evaluation on Ray."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable

import pytest
import torch

from txclf.config.sections import Compute
from txclf.core.errors import DataError
from txclf.data import actor_pool
from txclf.data.actor_pool import Actor
from txclf.data.pipeline import Fault


def halves() -> Callable[[int], int]:
    def half(number: int) -> int:
        if number % 2:
            try:
                raise OverflowError("odd")
            except OverflowError as error:
                raise DataError(f"{number} is odd") from error
        return number // 2

    return half


def missing() -> Callable[[int], int]:
    raise DataError("no model")


@pytest.fixture(autouse=True)
def _devices_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # an actor changes it, and no test after this file should see that


def answer(load: Callable[[], Callable[[int], int]], content: object) -> object:
    return pickle.loads(
        Actor(load, Compute(workers=1, cpus_per_worker=torch.get_num_threads()))(actor_pool._row(content))["content"]
    )


def test_actor_answers_a_chunk() -> None:
    assert answer(halves, 10) == 5


@pytest.mark.parametrize(
    ("load", "message", "cause"), [(halves, "7 is odd", "OverflowError('odd')"), (missing, "no model", None)]
)
def test_actor_returns_an_error_of_the_user_with_its_cause(
    load: Callable[[], Callable[[int], int]], message: str, cause: str | None
) -> None:
    fault = answer(load, 7)
    assert isinstance(fault, Fault)
    with pytest.raises(DataError, match=message) as caught:
        fault.throw()
    assert (None if caught.value.__cause__ is None else str(caught.value.__cause__)) == cause


def test_actor_passes_on_the_error_of_a_reader() -> None:
    assert str(answer(missing, Fault(DataError("damaged"), None))) == str(Fault(DataError("damaged"), None))


@pytest.mark.parametrize(("gpus", "visible"), [(0.0, ""), (0.5, "3")])
def test_actor_without_a_gpu_sees_none(gpus: float, visible: str) -> None:
    Actor(halves, Compute(workers=1, cpus_per_worker=torch.get_num_threads(), gpus_per_worker=gpus))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
