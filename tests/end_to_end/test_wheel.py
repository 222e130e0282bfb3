"""The wheel of this checkout in empty environments: it has every file of the package and asks for what it imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import txclf
from tests.helpers.environments import PIP, install, run
from tests.helpers.files import write_csv
from tests.helpers.runs import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and return its path."""
    folder = tmp_path_factory.mktemp("wheel")
    run(folder, *PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


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


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Install the wheel without extras and return the folder of its commands."""
    return install(wheel.parent / "plain", wheel)


def test_wheel_without_extras_trains_and_predicts(installed: Path, tmp_path: Path, data: str) -> None:
    where = Path(run(tmp_path, installed / "python", "-c", "import txclf; print(txclf.__file__)").strip())
    assert where.is_relative_to(installed.parent)
    shown = yaml.safe_load(run(tmp_path, installed / "txclf", "config", "train.epochs=7"))
    assert shown["train"]["epochs"] == 7
    (tmp_path / "run.yaml").write_text("name: run")
    run(tmp_path, installed / "txclf", "train", "run.yaml", *TINY, f"data.train={data}", "compute.workers=0")
    assert (ROOT / "txclf/assets/report_run.js").read_text().strip() in (tmp_path / "runs/run/report.html").read_text()
    said = run(tmp_path, installed / "txclf", "predict", "runs/run/model", "--text", "a good film", "--json")
    assert "probability" in said


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["export", "runs/run/model", "--format", "onnx"], "export"),
        (["serve", "runs/run/model"], "serve"),
        (["train", "run.yaml", "model.pretrained=nowhere"], "pretrained"),
    ],
)
def test_wheel_without_extras_names_the_one_it_needs(
    installed: Path, tmp_path: Path, tiny_bundle: str, data: str, command: list[str], extra: str
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "runs/run/model")
    (tmp_path / "run.yaml").write_text(f"name: other\ndata: {{train: {data}}}\n")
    done = subprocess.run(
        [installed / "txclf", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert f"txclf[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_wheel_with_extras_exports_and_serves(wheel: Path, tmp_path: Path, tiny_bundle: str) -> None:
    bin_folder = install(tmp_path / "all", wheel, "[cluster,export,mlflow,pretrained,serve]")
    rows = write_csv(tmp_path / "rows.csv", [("the quick brown fox", "low"), ("five boxing wizards", "high")] * 9)
    words = ["export", tiny_bundle, "--format", "onnx", "--data", rows, "--out", str(tmp_path / "graph")]
    assert "onnx" in run(tmp_path, bin_folder / "txclf", *words)
    code = "from txclf.serving import app; print(*sorted(p.name for p in app.ASSETS.iterdir() if 'serve.' in p.name))"
    assert run(tmp_path, bin_folder / "python", "-c", code).split() == ["serve.css", "serve.html", "serve.js"]
