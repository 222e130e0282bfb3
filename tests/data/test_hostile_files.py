"""Any file is read, with every row counted, or refused: the tests of `hostile_files.py`, in a process of their own.

Damaged sizes ask for address space that the process keeps, and a process with too much of it cannot start others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_hostile_files_are_read_or_refused() -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "pytest", "--verbose", "-p", "no:cacheprovider", "tests/data/hostile_files.py"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=root, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " 4 passed in " in done.stdout
