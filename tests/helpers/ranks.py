"""Processes of a torch process group."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from torch import distributed
from torch.multiprocessing.spawn import start_processes


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Run `function(rank, *arguments)` in `count` processes, and raise the error of the first that fails.

    They are forks of one server, which imports the libraries once.
    """
    multiprocessing.set_forkserver_preload(["txclf.training.worker", "ray.train.lightning"])
    start_processes(function, arguments, count, start_method="forkserver")  # type: ignore[no-untyped-call]


def leave() -> None:
    """End this process after all ranks have come here.

    It skips the teardown of gloo, whose threads abort a process now and then.
    """
    distributed.barrier()
    os._exit(0)
