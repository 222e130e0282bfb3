"""The files under cluster/, parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


CLUSTER = ROOT / "cluster"


LAUNCHED = ["on-premises", "aws", "gcp"]


KUBERAY = ["raycluster", "rayjob-train", "rayjob-tune"]


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def clusters() -> dict[str, dict[str, Any]]:
    manifests = {name: load(f"kuberay/{name}.yaml")["spec"] for name in KUBERAY}
    return {name: spec.get("rayClusterSpec", spec) for name, spec in manifests.items()}
