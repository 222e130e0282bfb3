"""Processes that Ray started for this test."""

from __future__ import annotations

import os
from pathlib import Path


def workers_of_ray() -> list[int]:
    """Return the processes of Ray Train's workers that descend from this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"RayTrainWorker" in path.read_bytes() and _is_mine(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def _is_mine(process: int) -> bool:
    """Return True if a process descends from this one."""
    while process > 1:
        if process == os.getpid():
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False
