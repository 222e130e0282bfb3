"""The wheel of this checkout: installed by itself, it has every file of the package and does its work.

The packages that txclf depends on are those of the running environment: installing them, and the extras, needs a
network.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import txclf
from tests.helpers.runs import trained

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and return its path."""
    folder = tmp_path_factory.mktemp("wheel")
    run(folder, *PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """Install the wheel alone into an empty folder and return that."""
    folder = wheel.parent / "site"
    run(wheel.parent, *PIP, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(folder), str(wheel))
    return folder


def run(folder: Path, *command: str, site: Path | None = None) -> str:
    """Run a command in a folder, with the packages in `site` before all others, and return its output."""
    found = {"PYTHONPATH": str(site)} if site else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **found}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "txclf").rglob("*") if path.is_file()}
    expected = {path for path in files if "__pycache__" not in path}
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    metadata = {name for name in found if ".dist-info/" in name}
    assert found - metadata == expected
    assert "txclf/py.typed" in found
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_wheel_metadata_has_the_extras_that_messages_and_pages_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == txclf.__version__
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"cluster", "export", "serve", "mlflow", "pretrained", "wandb"} <= extras


def test_installed_wheel_answers_its_commands(site: Path, tmp_path: Path) -> None:
    where = run(tmp_path, sys.executable, "-c", "import txclf; print(txclf.__file__)", site=site)
    assert where.strip() == str(site / "txclf/__init__.py")
    assert "evaluate" in run(tmp_path, sys.executable, "-m", "txclf", "--help", site=site)
    command = str(site / "bin/txclf")
    shown = yaml.safe_load(run(tmp_path, command, "config", "train.epochs=7", site=site))
    assert shown["train"]["epochs"] == 7


def test_installed_wheel_makes_a_report_and_has_the_page_of_the_service(site: Path, tmp_path: Path, data: str) -> None:
    finished, _ = trained(tmp_path, data)
    code = (
        "import sys, txclf; from txclf.reports.report import report; from txclf.serving import app; "
        "assert txclf.__file__.startswith(sys.argv[2]); print(report([sys.argv[1]])); "
        "print(*sorted(path.name for path in app.ASSETS.iterdir() if path.name.startswith('serve.')))"
    )
    printed = run(tmp_path, sys.executable, "-c", code, finished.run_folder, str(site), site=site).split()
    assert (ROOT / "txclf/assets/report_run.js").read_text().strip() in Path(printed[0]).read_text()
    assert printed[1:] == ["serve.css", "serve.html", "serve.js"]
