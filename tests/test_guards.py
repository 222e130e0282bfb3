"""What holds for the whole project: imports go down, every run file loads, nothing heavy is imported too early."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import txclf
from txclf import config
from txclf.sections import Compute, Data, Generate, Model, Tokenizer, Train
from txclf.space import Domain, Scheduler, Tune

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "txclf"

# A module imports only from floors above it in this list, or a sibling named in the same line after a colon.
FLOORS = [
    [
        "errors",
        "hashes",
        "stages",
        "tensors",
        "data.labels",
        "data.plan",
        "clock",
        "progress",
        "model.dropout",
        "occlusion",
        "gate",
    ],
    ["storage", "console", "sections", "report_page", "model.attention", "data.words", "gatherer"],
    ["space", "card", "description", "precision"],
    ["config"],
    [
        "data.sources",
        "data.tokenizer",
        "data.shards",
        "data.batches",
        "data.demo",
        "model.layers",
        "trackers",
        "curves",
    ],
    [
        "data.records",
        "data.spool",
        "data.writers",
        "model.classifier",
        "model.seq2seq",
        "checkpoints",
        "baseline",
        "calibration",
        "label_scores",
        "thresholds",
        "vectors",
        "log",
        "sessions",
        "efficiency",
    ],
    [
        "module",
        "bundle",
        "audit",
        "model.decoding",
        "cluster",
        "backend",
        "sharding",
        "folders",
        "inspect_data",
        "job",
        "class_weights",
    ],
    ["callbacks", "seq2seq", "module_seq2seq", "module_multilabel"],
    ["worker", "board", "selection", "graphs", "predictor", "annotate"],
    ["gauges", "service", "parts"],
    ["distributed", "predict_ray"],
    ["prepare", "train", "evaluate", "predict", "export", "serve", "trials"],
    ["schedulers", "trainable", "watcher", "check", "submit", "report_scores", "inspect"],
    ["tune", "report_run", "report_card"],
    ["screen", "report_search"],
    ["cli_cluster", "cli_models", "report"],
    ["cli_results", "cli_serve"],
    ["cli"],
    ["__main__"],
]
RAY = {
    "submit",
    "check",
    "schedulers",
    "trainable",
    "watcher",
    "tune",
    "cluster",
    "backend",
    "sharding",
    "stages",
    "distributed",
    "gauges",
    "serve",
    "predict_ray",
}
LIGHTNING = {"module", "callbacks", "worker", "job"}  # `job` for the checker of types alone


def modules() -> dict[str, Path]:
    names = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_on_a_floor() -> None:
    assert sorted(name for floor in FLOORS for name in floor) == sorted(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    level = {module: number for number, floor in enumerate(FLOORS) for module in floor}
    for full in imported(modules()[name]):
        match = re.match(r"txclf\.(?:((?:data|model)\.\w+)|(\w+))", full)
        if not match:
            continue
        target = match[1] or match[2]
        if target in level:
            assert level[target] < level[name], f"{name} imports {target}, which is no floor below"


@pytest.mark.parametrize("name", sorted(modules()))
def test_ray_and_lightning_stay_in_their_rooms(name: str) -> None:
    tops = {full.split(".")[0] for full in imported(modules()[name])}
    assert "ray" not in tops or name in RAY
    assert "pytorch_lightning" not in tops or name in LIGHTNING


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_run_file_loads(path: Path) -> None:
    run = config.load(path)
    assert run.name == path.stem
    assert run.data.train is not None


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = "import sys; from txclf import cli; print(*sys.modules)"
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


def test_the_driver_of_a_run_on_ray_leaves_lightning_to_the_workers() -> None:
    code = "import sys; from txclf import check, cluster, distributed, screen, train; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "ray.train" in loaded
    assert not {"pytorch_lightning", "torchmetrics", "torch._dynamo", "sklearn"} & set(loaded)


def test_the_bundle_loads_without_ray_and_lightning() -> None:
    code = "import sys; from txclf import Classifier; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"ray", "pytorch_lightning", "sklearn"} & set(loaded)


def test_files_stay_short() -> None:
    long = {path.name: lines for path in modules().values() if (lines := len(path.read_text().splitlines())) > 410}
    assert not long


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{txclf.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    guide = (ROOT / "docs/guide/run-file.md").read_text()
    for section in (Data, Tokenizer, Model, Train, Generate, Compute, Tune, Scheduler, Domain, config.RunConfig):
        for name, field in section.model_fields.items():
            assert f"`{name}`" in guide, f"docs/guide/run-file.md says nothing of `{name}`"
            assert field.description or name in {
                "data",
                "tokenizer",
                "model",
                "train",
                "generate",
                "compute",
                "tune",
                "scheduler",
            }
