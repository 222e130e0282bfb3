"""Processes that do the same thing at the same moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.helpers.waiting import PATIENCE_S

GATE = """
import sys
from txclf.core.errors import TxclfError
print("ready", flush=True)
sys.stdin.readline()
try:
    {body}
except TxclfError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def at_once(imports: str, call: str, arguments: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Run a Python call once for each list of arguments (`sys.argv[1:]`), all started together.

    Return the exit code, the standard output and the standard error of each process.
    """
    code = imports + GATE.format(body=call)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *words],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for words in arguments
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", process.communicate()
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
