"""Python environments that hold a wheel of this checkout and what it asks for, and nothing else of the running one."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in a folder, without the packages of the running environment, and return its output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def install(folder: Path, wheel: Path, extras: str = "") -> Path:
    """Install a wheel with extras, as in `[export,serve]`, into an empty environment and return its `bin` folder.

    The packages that it asks for are links to those of the running environment. pip then installs the wheel without an
    index, so it fails if one is missing, or has another version than the wheel asks for.
    """
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    wanted = Requirement(f"txclf{extras} @ {wheel.as_uri()}")
    for name in _required(wanted):
        for top in {path.parts[0] for path in distribution(name).files or () if path.parts[0] != ".."}:
            target = Path(str(distribution(name).locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    python = folder / "bin/python"
    run(folder, *PIP, "--python", python, "install", "--no-index", "--no-compile", str(wanted))
    return python.parent


def _required(wanted: Requirement) -> set[str]:
    """Return the packages that the running environment has for a requirement, directly or not, without it."""
    found, open_ones = set[tuple[str, str]](), [(wanted.name, extra) for extra in ("", *wanted.extras)]
    while open_ones:
        name, extra = open_ones.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for requirement in map(Requirement, distribution(name).requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                open_ones += [(requirement.name, more) for more in ("", *requirement.extras)]
    return {name for name, _ in found} - {wanted.name}
