"""The CPUs of this process."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Return the CPUs that this process may use: those of its affinity, but no more than its control groups allow.

    `root` is the folder in which `proc` and `sys` lie.
    """
    return max(1, min([_affinity(), *(math.ceil(quota) for quota in _quotas(root))]))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPUs that each control group of this process allows (version 2, then version 1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not on Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == top:
                break


def _quota(folder: Path) -> Iterator[float]:
    """Yield the CPUs that one control group allows, if it has a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and float(quota) > 0:
            yield float(quota) / float(period)
    except (OSError, ValueError):
        return


def share() -> None:
    """Let OpenMP have no more threads than this process has CPUs.

    It has an effect before torch is loaded only. What the environment sets is kept.
    """
    if "torch" not in sys.modules and available() < _affinity():  # which OpenMP knows
        os.environ.setdefault("OMP_NUM_THREADS", str(available()))
