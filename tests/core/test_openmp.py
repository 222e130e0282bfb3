"""OpenMP's threads spin while they wait, unless this process has to wait for its CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helpers.waiting import wait_until
from txclf.core import openmp

SPINNING = """
import time, torch
from txclf.core import openmp
torch.set_num_threads(2)
x = torch.zeros(200_000)
def seconds():  # of all threads, mostly of the one that waits for the next operation
    began = time.process_time()
    for _ in range(40):
        x.add_(1)
        time.sleep(0.005)
    return time.process_time() - began
library = openmp._gnu_openmp()
before = seconds()
with openmp._more_threads_than_cpus(library, library.omp_get_num_procs()):
    asleep = seconds()
print(before, asleep, seconds())
"""
needs_linux = pytest.mark.skipif(openmp._seconds_waited() is None, reason="needs Linux's scheduling statistics")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def teams() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "openmp-team"]


@needs_linux
def test_a_second_team_lets_waiting_threads_sleep_for_as_long_as_it_exists() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    found = subprocess.run(
        [sys.executable, "-c", SPINNING], env=environment, capture_output=True, text=True, check=True
    )
    before, asleep, after = map(float, found.stdout.split())
    assert asleep < before / 3
    assert asleep < after / 3


@needs_linux
def test_threads_sleep_next_to_other_programs_and_spin_afterwards() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with openmp.spinning_on_free_cpus():
            with busy(2 * len(os.sched_getaffinity(0))):
                work = threading.Thread(target=wait_until, args=(teams,))
                work.start()
                while work.is_alive():
                    pass  # this thread needs a CPU
            wait_until(lambda: not teams())
        assert "openmp-waiting" not in {thread.name for thread in threading.enumerate()}
    finally:
        torch.set_num_threads(threads)


def test_one_thread_has_nobody_to_wait_for() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with openmp.spinning_on_free_cpus():
            assert "openmp-waiting" not in {thread.name for thread in threading.enumerate()}
    finally:
        torch.set_num_threads(threads)
