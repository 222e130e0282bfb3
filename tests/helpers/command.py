"""The installed `txclf` command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TXCLF = str(Path(sys.executable).parent / "txclf")


def txclf(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `txclf` in a working directory and return its exit code and output."""
    return subprocess.run(
        [TXCLF, *arguments],
        cwd=folder,
        timeout=timeout,
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """Return the environment of such a process: one thread, and help pages of 100 columns."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
