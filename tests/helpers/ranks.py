"""Processes of a torch process group."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from torch import distributed
from torch.multiprocessing.spawn import start_processes

from tests.helpers.waiting import PATIENCE_S


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Run `function(rank, *arguments)` in `count` processes, and raise the error of the first that fails.

    They are forks of one server, which imports the libraries once. One that hangs ends with its traceback.
    """
    multiprocessing.set_forkserver_preload(["txclf.training.worker", "ray.train.lightning"])
    start_processes(_run, (function, arguments), count, start_method="forkserver")  # type: ignore[no-untyped-call]


def _run(rank: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)  # also if the process hangs at its end
    function(rank, *arguments)


def leave() -> None:
    """End this process after all ranks have come here.

    It skips the teardown of gloo, whose threads abort a process now and then.
    """
    distributed.barrier()
    os._exit(0)
