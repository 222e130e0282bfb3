"""One function, or one generator, as a Ray task with the resources of a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray

from txclf.config.sections import Compute
from txclf.core import devices
from txclf.core.errors import ClusterError, TxclfError

Result = TypeVar("Result")
POLL_S = 0.5
"""Seconds without a value after which a stream lets its reader look for a request to stop."""
END_S = 10.0
"""Seconds that the task of a closed stream has to end."""


def call(compute: Compute, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return `function(*arguments)`, computed by a task with the CPUs and GPUs of one worker.

    Raises the function's `TxclfError`, or `ClusterError` if the task's process or node dies too often.
    """
    with _one_message():
        return _value(_task(compute, _run).remote(compute, function, arguments))  # type: ignore[no-any-return]


def stream(compute: Compute, function: Callable[..., Iterator[Result]], *arguments: Any) -> Generator[Result | None]:
    """Yield what `function(*arguments)` yields in a task with the CPUs and GPUs of one worker.

    None comes every `POLL_S` seconds without a value. The task does not wait for its values to be taken. If the
    iterator is closed or interrupted, the task has ended afterwards, or `END_S` seconds have passed. Raises as `call`.
    """
    values = _task(compute, _stream, num_returns="streaming").remote(compute, function, arguments)
    try:
        with _one_message():
            while True:
                if not ray.wait([values], timeout=POLL_S)[0]:
                    yield None
                    continue
                try:
                    reference = next(values)
                except StopIteration:
                    return
                yield _value(reference)
    except BaseException:
        _end(values)
        raise


def _end(values: Any) -> None:
    """End the task of a stream, and wait for that for at most `END_S` seconds."""
    deadline = time.monotonic() + END_S

    def left() -> float:
        return max(0.0, deadline - time.monotonic())

    with suppress(StopIteration, ray.exceptions.RayError):
        ray.cancel(values)
        while ray.wait([values], timeout=left())[0]:
            ray.get(next(values), timeout=left())  # a value of a task that died waits for the task that repeats it


def _task(compute: Compute, function: Callable[..., Any], **options: Any) -> Any:
    # Not by `.options`: of a function without GPUs Ray would keep the process, and it the memory of its GPU.
    settings: dict[str, Any] = {
        "num_cpus": compute.cpus_per_worker,
        "num_gpus": compute.gpus_per_worker or None,
        "scheduling_strategy": "DEFAULT",  # not in the placement group of a trial, which has no room for it
        **options,
    }
    return ray.remote(**settings)(function)


def _value(reference: Any) -> Any:
    value, error = ray.get(reference)
    if error is not None:
        raise error
    return value


@contextmanager
def _one_message() -> Iterator[None]:
    """Turn Ray's errors within the block, except bugs of the task, into `ClusterError`."""
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise  # a bug: keep its traceback
    except ray.exceptions.RayError as failure:
        raise ClusterError(
            f"a task of the run died: {failure}. Finished work is kept: pass --resume to continue."
        ) from None


def _stream(
    compute: Compute, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> Iterator[tuple[Any, TxclfError | None]]:
    """Yield values without error or, because Ray changes the type of a raised error, one without value."""
    devices.take(compute.cpus_per_worker, compute.gpus_per_worker)
    try:
        devices.require(compute.gpus_per_worker)
        for value in function(*arguments):
            yield value, None
    except TxclfError as error:
        yield None, error


def _run(compute: Compute, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, TxclfError | None]:
    """Return the result and the error of a function."""
    devices.take(compute.cpus_per_worker, compute.gpus_per_worker)
    try:
        devices.require(compute.gpus_per_worker)
        return function(*arguments), None
    except TxclfError as error:
        return None, error
