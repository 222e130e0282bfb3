"""Waiting for what must happen, however slow the machine is."""

from __future__ import annotations

import subprocess
import time
from typing import Any

PATIENCE_S = 600.0
"""Seconds after which a test gives up. What happens at all happens sooner, also on a busy machine."""


def wait_until(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition holds; fail after `PATIENCE_S` or if the process has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        if process is not None:
            assert process.poll() is None, f"ended with {process.returncode}"
        time.sleep(0.05)
