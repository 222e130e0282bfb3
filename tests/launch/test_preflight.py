"""`txclf check` tells what a run lacks, on this machine and on a cluster of real nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.runs import TINY
from tests.helpers.testbed import Testbed, environment, namespaces_work
from txclf.config import run_config
from txclf.config.sections import Compute
from txclf.launch import preflight

TXCLF = str(Path(sys.executable).with_name("txclf"))


def check(
    folder: Path, data: str, *words: str, verb: str = "check", within: list[str] | None = None
) -> tuple[int, str]:
    (folder / "run.yaml").write_text("name: run\n")
    command = [*(within or []), TXCLF, verb, str(folder / "run.yaml"), *TINY, f"data.train={data}", *words]
    done = subprocess.run(
        [*command, f"storage={folder}/runs"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
        timeout=200,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_check_run_in_this_process_passes(tmp_path: Path, data: str) -> None:
    code, said = check(tmp_path, data)
    assert code == 0
    assert "pass  run file: `run`, 1 data file(s) for train" in said
    assert f"pass  storage: `{tmp_path}/runs` is read and written by 1 node(s), 1 data file(s) readable" in said
    assert "pass  versions: Python 3." in said
    assert "pass  precision: " in said
    assert not list((tmp_path / "runs").iterdir())


def test_check_missing_data_fails(tmp_path: Path) -> None:
    code, said = check(tmp_path, "none.csv")
    assert code == 1
    assert "none.csv`: no such file or folder" in said


def test_check_unwritable_storage_fails(tmp_path: Path, data: str) -> None:
    (tmp_path / "runs").write_text("a file")
    code, said = check(tmp_path, data)
    assert code == 2
    assert "runs/.probe-" in said
    assert "cannot be written" in said


def report(bf16: str, has_room: bool) -> preflight.Node:
    return preflight.Node("node", {}, 1, [], 1.0, 1.0, 1.0, 0.0, bf16, [], has_room)


def test_probe_misses_a_node_whose_name_begins_that_of_another(tmp_path: Path) -> None:
    with preflight.Probe(str(tmp_path)) as probe:
        (tmp_path / f".probe-{probe.token}-10.0.0.12").touch()
        nodes: Any = [SimpleNamespace(name=name) for name in ("10.0.0.1", "10.0.0.12")]
        assert probe.missing(nodes) == ["10.0.0.1"]


def test_ask_judges_precision_by_the_gpu_only_if_workers_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *number: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    with preflight.Probe(str(tmp_path)) as probe:
        with_gpu, without = (preflight.ask(probe.token, str(tmp_path), [], gpu) for gpu in (True, False))
    assert with_gpu.bf16 == "bf16-mixed: A GPU multiplies bf16 in hardware"
    assert "this CPU has" in without.bf16
    assert without.gpus == ["A GPU"]


def test_precision_is_that_of_the_nodes_with_room_for_a_worker() -> None:
    run = run_config.parse({})
    head, worker = report("32-true: a CPU", has_room=False), report("bf16-mixed: a GPU", has_room=True)
    assert preflight._precision(run, [head, worker]) == ("pass", "precision", "bf16-mixed: a GPU", "")
    assert preflight._precision(run, [head._replace(has_room=True), worker]).status == "warn"
    assert preflight._precision(run, [head]).found == "no node has room for a worker"


def test_versions_may_differ_in_the_build_of_pytorch_only() -> None:
    nodes = [report("", True)._replace(name=name, versions={"torch": name}) for name in ("2.13.0+cpu", "2.13.0+cu130")]
    found = preflight._versions(nodes)
    assert (found.status, found.found) == ("pass", "2.13.0+cpu: torch 2.13.0+cpu; 2.13.0+cu130: torch 2.13.0+cu130")
    other = nodes[0]._replace(versions={"torch": "2.12.0+cpu"})
    assert preflight._versions([*nodes, other]).status == "fail"


def test_gpus_of_ray_that_pytorch_cannot_use_fail() -> None:
    node = report("", True)._replace(disk=99.0, shm=9.0, gpus_of_ray=2, gpus=["A GPU"])
    (found,) = preflight._machines([node], Compute(workers=1, gpus_per_worker=1))
    assert (found.status, "2 GPUs of which PyTorch can use 1" in found.found) == ("fail", True)
    assert found.advice == "install PyTorch for CUDA, or a driver that knows its CUDA version"
    for compute in (Compute(workers=1), Compute()):  # which take none
        assert preflight._machines([node], compute)[0].status == "pass"
    seen = node._replace(gpus=["A GPU", "A GPU"])
    assert preflight._machines([seen], Compute(workers=1, gpus_per_worker=1))[0].status == "pass"


@pytest.mark.parametrize(
    ("compute", "expected"),
    [({}, "fail"), ({"workers": 1}, "fail"), ({"workers": 1, "gpus_per_worker": 1}, "pass")],
    ids=["no GPU here", "no GPU for the workers", "a GPU for the workers"],
)
def test_half_precision_needs_a_gpu(compute: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = run_config.parse({"train": {"precision": "fp16"}, "compute": compute})
    found = preflight._precision(run, [report("32-true: a CPU", has_room=True)])
    assert (found.status, "fp16" in found.found) == (expected, True)


@pytest.mark.faults
def test_check_asks_every_node(tmp_path: Path, data: str) -> None:
    if not namespaces_work():
        pytest.skip("hiding a folder from a node needs network and mount namespaces")
    (tmp_path / "runs").mkdir()
    with Testbed(head_cpus=0) as bed:
        bed.add("one", 1)
        words, within = [f"compute.address={bed.address}"], bed.head.within
        code, said = check(tmp_path, data, *words, "compute.workers=1", within=within)
        assert code == 0
        assert "is read and written by 2 node(s), 1 data file(s) readable" in said
        assert "pass  workers: 1 x 1 CPUs: the cluster has room for 1" in said
        assert "pass  token: Ray asks for a token" in said
        assert "pass  clocks: apart by up to 0.0 s" in said
        two = bed.add("two", 1, hidden=tmp_path / "runs")
        code, said = check(tmp_path, data, *words, "compute.workers=3", within=within)
        assert code == 1
        assert f"fail  storage: 1 of 3 node(s) fail, first {two.address}: `{tmp_path}/runs/.probe-" in said
        assert "-> set `storage` (and the data) to a path that every node mounts" in said
        assert "fail  workers: `compute.workers` (3) x `compute.cpus_per_worker` (1) = 3 CPUs, but Ray has 2" in said
        code, said = check(tmp_path, data, *words, "compute.workers=2", verb="train", within=within)
        assert code == 2
        assert f"error: storage: 1 of 3 node(s) fail, first {two.address}" in said
