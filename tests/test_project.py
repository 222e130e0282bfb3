"""Checks of the whole project: run files, imports, file lengths, changelog."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import txclf
from txclf.config import run_config
from txclf.config.search_space import Domain, Scheduler, Tune
from txclf.config.sections import Compute, Data, Distill, Generate, Model, Tokenizer
from txclf.config.train import Train

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "txclf"


def modules() -> dict[str, Path]:
    names = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_run_file_loads(path: Path) -> None:
    run = run_config.load(path)
    assert run.name == path.stem
    assert run.data.train is not None


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; import txclf.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {
        "torch",
        "ray",
        "pytorch_lightning",
        "pyarrow",
        "numpy",
        "sklearn",
        "pydantic",
        "plotly",
        "jinja2",
        "fastapi",
        "uvicorn",
    } & set(loaded)


def test_driver_of_a_ray_run_does_not_import_lightning() -> None:
    names = ("cli.tables", "launch.preflight", "training.distributed.ray_trainer", "training.train")
    code = f"import sys, {', '.join(f'txclf.{name}' for name in names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "ray.train" in loaded
    assert not {"pytorch_lightning", "torchmetrics", "torch._dynamo", "sklearn"} & set(loaded)


def test_bundle_loads_without_ray_and_lightning() -> None:
    code = "import sys; from txclf import Classifier; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"ray", "pytorch_lightning", "sklearn"} & set(loaded)


def test_modules_have_at_most_400_lines() -> None:
    long = {name: lines for name, path in modules().items() if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("name", sorted(set(modules()) - {"__main__", "_version"}))
def test_module_has_its_test_file(name: str) -> None:
    *packages, module = name.split(".")
    assert (ROOT / "tests").joinpath(*packages, f"test_{module}.py").exists()


def test_test_files_import_helpers_only() -> None:
    found = [
        f"{path}: {line}"
        for path in (ROOT / "tests").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) (tests\.)?((?!helpers)\w+\.)*test_\w+", line)
    ]
    assert not found


def test_no_code_compares_the_task() -> None:
    found = [
        f"{path}: {line.strip()}"
        for path in PACKAGE.rglob("*")
        if path.suffix in {".py", ".html", ".js"} and path != PACKAGE / "config/tasks.py"
        for line in path.read_text().splitlines()
        if re.search(r"\btask (==|!=|in |not in )", line)
    ]
    assert not found


def test_changelog_has_the_current_version() -> None:
    assert f"## [{txclf.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_key_is_documented() -> None:
    sections = {"data", "tokenizer", "model", "train", "distill", "generate", "compute", "tune", "scheduler"}
    for section in (
        Data,
        Tokenizer,
        Model,
        Train,
        Distill,
        Generate,
        Compute,
        Tune,
        Scheduler,
        Domain,
        run_config.RunConfig,
    ):
        for name, field in section.model_fields.items():
            assert field.description or name in sections, f"`{section.__name__}.{name}` has no docstring"
