"""Forks of a process that has imported Ray."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.waiting import PATIENCE_S

DRAW = """
import os
from ray._raylet import UniqueID
drawn = set()
for _ in range(3):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, UniqueID.from_random().binary())
        os._exit(0)
    os.close(writer)
    drawn.add(os.read(reader, 100))
assert len(drawn) == 3, "the forks have drawn the same ids"
"""


def require_different_ids(program: str) -> None:
    """Run a program, and three forks of it that each draw an id of Ray; fail if two draw the same."""
    command = [sys.executable, "-W", "ignore", "-c", program + DRAW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
