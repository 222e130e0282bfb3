"""Processes that Ray started for this test."""

from __future__ import annotations

import os
from pathlib import Path


def workers_of_ray(name: str = "RayTrainWorker") -> list[int]:
    """Return the processes of Ray with a name, by default Ray Train's workers, that descend from this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
            if title.startswith(b"ray::") and name.encode() in title and _is_mine(int(path.parent.name)):
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
