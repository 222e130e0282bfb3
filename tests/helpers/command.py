"""The installed command, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TXCLF = str(Path(sys.executable).parent / "txclf")


def txclf(folder: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TXCLF, *words], cwd=folder, timeout=timeout, check=False, capture_output=True, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
