"""One function as a Ray task with the resources of a worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch

from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, TxclfError

Result = TypeVar("Result")


def call(compute: Compute, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return `function(*arguments)`, computed by a task with the CPUs and GPUs of one worker.

    Raises the function's `TxclfError`, or `ClusterError` if the task's process or node dies too often.
    """
    task = ray.remote(_run).options(
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        scheduling_strategy="DEFAULT",  # not in the placement group of a trial, which has no room for it
    )
    try:
        result, error = ray.get(task.remote(compute, function, arguments))
    except ray.exceptions.RayTaskError:
        raise  # a bug: keep its traceback
    except ray.exceptions.RayError as failure:
        raise ClusterError(
            f"a task of the run died: {failure}. Finished work is kept: pass --resume to continue."
        ) from None
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _run(compute: Compute, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, TxclfError | None]:
    """Return the result and the error of a function, because Ray changes the type of a raised error."""
    if not compute.gpus_per_worker:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the GPUs belong to tasks that request them
    torch.set_num_threads(max(1, int(compute.cpus_per_worker)))
    try:
        return function(*arguments), None
    except TxclfError as error:
        return None, error
