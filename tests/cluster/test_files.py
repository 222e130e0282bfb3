"""Files of `cluster/`: schemas of their readers, setup of nodes, exposed ports and secrets."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray
from ray.autoscaler._private import util

import txclf
from tests.helpers.cluster_files import CLUSTER, KUBERAY, LAUNCHED, ROOT, clusters, load

BIN = Path(sys.executable).parent
RAY_VERSION = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[0]


def files() -> list[Path]:
    return sorted(path for path in CLUSTER.rglob("*") if path.is_file())


def run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------------------- ray up


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_accepts_the_file(name: str) -> None:
    """Check the file with the preparation and the schema of Ray, which need no cloud."""
    prepared = util.prepare_config(load(f"{name}.yaml"))
    util.validate_config(prepared)
    broken = copy.deepcopy(prepared)
    broken["head_start_commands"] = []
    with pytest.raises(jsonschema.ValidationError, match="head_start_commands"):
        util.validate_config(broken)
    min_workers = sum(kind.get("min_workers", 0) for kind in prepared["available_node_types"].values())
    assert 1 <= min_workers <= prepared["max_workers"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_have_the_same_setup(name: str) -> None:
    launched = load(f"{name}.yaml")
    first = load("on-premises.yaml")
    for key in ("file_mounts", "head_start_ray_commands", "worker_start_ray_commands"):
        assert launched[key] == first[key]
    for here in launched["file_mounts"].values():
        assert here.startswith("~/.ray") or (ROOT / here).exists(), here
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = launched[key][-1]
        assert start.startswith("export RAY_AUTH_MODE=token ")
        assert "PATH=$HOME/txclf/.venv/bin:$PATH; ulimit -n 65536;" in start
    assert "--dashboard-host=127.0.0.1" in launched["head_start_ray_commands"][-1]
    assert launched["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any(command.startswith("bash ~/txclf/cluster/setup.sh") for command in launched["setup_commands"])


def test_clouds_have_spot_nodes_with_storage_access() -> None:
    aws, gcp = load("aws.yaml")["available_node_types"], load("gcp.yaml")["available_node_types"]
    assert aws["gpu_spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gcp["gpu_spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert all(kind["node_config"]["IamInstanceProfile"] == {"Name": "txclf-ray"} for kind in aws.values())
    # The account that Ray makes; its code needs Google's packages, so it is read, not imported.
    source = Path(ray.__file__).with_name("autoscaler") / "_private/gcp/config.py"
    version = re.findall(r'^VERSION = "(\w+)"$', source.read_text(), re.MULTILINE)[0]
    account = f"ray-autoscaler-sa-{version}@{load('gcp.yaml')['provider']['project_id']}.iam.gserviceaccount.com"
    for name in ("gpu", "gpu_spot"):
        assert gcp[name]["node_config"]["serviceAccounts"][0]["email"] == account
    assert aws["head"]["resources"] == gcp["head"]["resources"] == {"CPU": 0}


def test_again_script_resumes_with_the_same_arguments(tmp_path: Path) -> None:
    """Run `again.sh` with a stand-in for txclf that prints its arguments."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(
        f'#!/bin/sh\nif [ "$1 $2" = "-m txclf" ]; then shift; echo "$@"; else exec {sys.executable} "$@"; fi\n'
    )
    (tmp_path / "bin/python").chmod(0o755)
    (tmp_path / "mine.yaml").write_text("name: mine\n")

    def asked(*words: str) -> str:
        return subprocess.run(
            ["bash", CLUSTER / "again.sh", *words],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        ).stdout.strip()

    words = ["mine.yaml", f"storage={tmp_path}/runs"]
    assert asked("train", *words) == f"txclf train mine.yaml storage={tmp_path}/runs"
    (tmp_path / "runs/mine").mkdir(parents=True)
    for name in ("prepared.json", "run.yaml"):
        (tmp_path / "runs/mine" / name).write_text("")
    assert asked("train", *words) == f"txclf train mine.yaml storage={tmp_path}/runs --resume"
    assert asked("train", "--time=10m", *words).endswith("--resume")
    assert asked("distill", "/models/teacher", *words).endswith("--resume")
    assert asked("train", *words, "name=other") == f"txclf train mine.yaml storage={tmp_path}/runs name=other"
    assert asked("check", *words) == f"txclf check mine.yaml storage={tmp_path}/runs"
    assert asked("train", "none.yaml") == "txclf train none.yaml"


# -------------------------------------------------------------------------------------------------- images and scripts


@pytest.mark.parametrize("name", ["setup.sh", "slurm.sh", "again.sh"])
def test_scripts_pass_shellcheck(name: str) -> None:
    run(BIN / "shellcheck", CLUSTER / name)
    assert (CLUSTER / name).stat().st_mode & 0o111


def test_dockerfile_passes_hadolint_and_copies_existing_files() -> None:
    run(BIN / "hadolint", CLUSTER / "Dockerfile")
    text = (CLUSTER / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()}
    let_in = {
        line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["readme"] in copied
    assert set(project["license-files"]) <= copied


def test_slurm_script_receives_the_signal_itself() -> None:
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert "--signal=B:TERM@120" in asked
    assert "--ntasks-per-node=1" in asked


# ------------------------------------------------------------------------------------------------- versions and doors


def test_versions_equal_those_of_the_lock() -> None:
    assert ray.__version__ == RAY_VERSION
    for spec in clusters().values():
        assert spec["rayVersion"] == RAY_VERSION
    for path in files():
        for version in re.findall(r"\bray(?:\[[\w,]+\])?==([\d.]+)", path.read_text()):
            assert version == RAY_VERSION, path
        for version in re.findall(r"txclf:(\d[\d.]+\d)", path.read_text()):
            assert version == txclf.__version__, path
    docker = (CLUSTER / "Dockerfile").read_text()
    assert "--constraint requirements.lock '.[cluster,pretrained]'" in docker
    assert "--constraint requirements.lock '.[cluster,pretrained]'" in (CLUSTER / "setup.sh").read_text()
    locked = (ROOT / "requirements.lock").read_text().splitlines()[0]
    assert re.findall(r"^FROM python:([\d.]+)-slim$", docker, re.MULTILINE) == re.findall(r"Python ([\d.]+)", locked)


def test_every_ray_requires_the_token() -> None:
    for name in LAUNCHED:
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            for command in load(f"{name}.yaml")[key]:
                assert "ray stop" in command or "RAY_AUTH_MODE=token" in command
    for spec in clusters().values():
        assert spec["authOptions"] == {"mode": "token"}
    compose = load("docker-compose.yaml")
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert service["secrets"][0] in compose["secrets"]
    slurm = (CLUSTER / "slurm.sh").read_text()
    assert slurm.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=") < slurm.index("srun ")


def test_dashboard_is_not_exposed() -> None:
    for path in files():
        text = path.read_text()
        # In a container it listens on all of the container's addresses; who gets there is said by ports and services.
        if path.name not in ("docker-compose.yaml", *(f"{name}.yaml" for name in KUBERAY)):
            assert "0.0.0.0" not in text, path
            assert text.count("ray start") == 0 or "--dashboard-host=127.0.0.1" in text, path
    for service in load("docker-compose.yaml")["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "network_mode" not in service
    for spec in clusters().values():
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert "enableIngress" not in spec["headGroupSpec"]


def test_files_hold_no_secret() -> None:
    for path in files():
        text = path.read_text()
        assert not re.search(r"\b[0-9a-f]{32,}\b", text), path
        assert not re.search(r"RAY_AUTH_TOKEN[=:]", text), path
        assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text), path
