"""OpenMP's waiting threads: they spin on CPUs that are free and sleep on CPUs that others need.

Threads that wait for the next parallel region spin, because waking up a sleeping thread takes longer than most of a
model's operations, twice as long on some virtual machines. On a CPU that another program needs, though, spinning takes
the time away from the very thread that is waited for. GNU's OpenMP sleeps at once as soon as it has more threads than
CPUs (libgomp, `gomp_throttled_spin_count_var`); a second team of threads, which does nothing, makes it so.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_S = 0.5
"""Seconds between two measurements. Within less, validation looks like another program."""

CROWDED = 0.2
"""Seconds a second that threads of this process waited for a CPU, above which its threads no longer spin."""

FIRST_SLEEP_S, LONGEST_SLEEP_S = 1.0, 16.0
"""Seconds for which threads sleep before they may try to spin again: doubled by every try that fails."""

SCHEDULING = Path("/proc/self/task")
MAPPED = Path("/proc/self/maps")


@contextmanager
def spinning_on_free_cpus() -> Iterator[None]:
    """Let OpenMP's threads sleep while they wait, whenever this process has to wait for its CPUs during the block.

    torch must be loaded. Without Linux's scheduling statistics or GNU's OpenMP nothing changes, nor with one thread.
    """
    library = _gnu_openmp()
    threads = library.omp_get_max_threads() if library else 1
    if library is None or threads == 1 or _seconds_waited() is None:
        yield
        return
    ended = threading.Event()
    spare = max(0, library.omp_get_num_procs() - threads)
    watcher = threading.Thread(target=_watch, args=(library, spare + 2, ended), name="openmp-waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _gnu_openmp() -> ctypes.CDLL | None:
    """Return the OpenMP that torch has loaded."""
    try:
        paths = {line.split()[-1] for line in MAPPED.read_text().splitlines() if "/torch/lib/libgomp" in line}
        library = ctypes.CDLL(paths.pop()) if paths else None
    except OSError:
        return None
    needed = ("GOMP_parallel", "omp_get_max_threads", "omp_get_num_procs")
    return library if library and all(hasattr(library, name) for name in needed) else None


def _seconds_waited() -> float | None:
    """Return how long this process's threads were ready to run without a CPU, in seconds, summed over the threads."""
    waited = 0
    try:
        for thread in SCHEDULING.iterdir():
            try:
                waited += int((thread / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended in between
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9


def _watch(library: ctypes.CDLL, team: int, ended: threading.Event) -> None:
    """Hold a team of threads whenever CPUs are missing, until the end."""
    sleep_s, calm_s = FIRST_SLEEP_S, 0.0
    while not ended.is_set():
        before, began = _seconds_waited() or 0.0, time.monotonic()
        ended.wait(INTERVAL_S)
        elapsed = time.monotonic() - began
        if (_seconds_waited() or 0.0) - before <= CROWDED * elapsed:
            calm_s += elapsed
            continue
        if calm_s > LONGEST_SLEEP_S:
            sleep_s = FIRST_SLEEP_S
        with _more_threads_than_cpus(library, team):
            ended.wait(sleep_s)
        sleep_s, calm_s = min(2 * sleep_s, LONGEST_SLEEP_S), 0.0


@contextmanager
def _more_threads_than_cpus(library: ctypes.CDLL, team: int) -> Iterator[None]:
    """Hold a second team of so many threads of OpenMP, which sleep, for the duration of the block."""
    started, ended = threading.Event(), threading.Event()
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)

    def hold() -> None:
        library.GOMP_parallel(nothing, None, ctypes.c_uint(team), ctypes.c_uint(0))
        started.set()
        ended.wait()  # the team lives as long as the thread that has started it

    holder = threading.Thread(target=hold, name="openmp-team", daemon=True)
    holder.start()
    started.wait()
    try:
        yield
    finally:
        ended.set()
        holder.join()
