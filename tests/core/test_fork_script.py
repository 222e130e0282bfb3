"""The script that stands for another one imports little, and runs the module itself where there is no server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from txclf.core import fork_script


def test_module_runs_here_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "show_arguments.py").write_text("import sys; print(__name__, sys.argv[1:])")
    server = {fork_script.SERVER: str(tmp_path / "no server"), fork_script.MODULE: "show_arguments"}
    done = subprocess.run(
        [sys.executable, fork_script.__file__, "--one", "two words"],
        env={**os.environ, **server, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "__main__ ['--one', 'two words']\n"


def test_script_imports_the_standard_library_only() -> None:
    program = (
        "import runpy, sys; before = {*sys.modules}\n"
        f"runpy.run_path({fork_script.__file__!r})\n"
        "print(*sorted({name.partition('.')[0] for name in {*sys.modules} - before} - {*sys.stdlib_module_names}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
