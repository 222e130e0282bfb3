"""Workers of a local Ray are forks, each with random ids of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from txclf.config.sections import Compute
from txclf.core import fork_script
from txclf.launch import local_workers


@ray.remote(num_cpus=0)
class Worker:
    def describe(self) -> dict[str, Any]:
        import threading

        from ray._raylet import PlacementGroupID, UniqueID

        elsewhere: list[str] = []
        thread = threading.Thread(target=lambda: elsewhere.append(UniqueID.from_random().hex()))
        thread.start()
        thread.join()
        return {
            "parent": os.getppid(),
            "has torch": "torch" in sys.modules,
            "ids": [UniqueID.from_random().hex(), *elsewhere, PlacementGroupID.from_random().hex()[:8]],
        }


@pytest.mark.parametrize(
    "compute",
    [Compute(), Compute(workers=1, address="127.0.0.1:6379"), Compute(workers=1, gpus_per_worker=1)],
    ids=["without Ray", "on a cluster", "on GPUs"],
)
def test_other_workers_are_not_forked(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with local_workers.forked(compute):
        assert fork_script.SERVER not in os.environ


def test_forked_workers_of_a_search_need_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with local_workers.forked(Compute(), always=True):
        address = os.environ[fork_script.SERVER]
        with local_workers.forked(Compute(workers=1)):
            assert os.environ[fork_script.SERVER] == address
        assert os.environ[fork_script.SERVER] == address
    assert fork_script.SERVER not in os.environ
    assert not Path(address).exists()


def test_import_needs_no_torch() -> None:
    program = (
        "import sys, txclf.launch.local_workers; assert not {'torch', 'ray', 'pytorch_lightning'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


DIES_FIRST = """
import os, runpy, sys
if __name__ == "__main__":
    try:
        os.open(MARK, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        runpy.run_module("ray._private.workers.default_worker", run_name="__main__")
"""
CALL = """
import ray
from txclf import ray_cluster
from txclf.config.sections import Compute
from txclf.core import fork_server
with fork_server.started(fork_server.Imports([], "dies_first", [], [])) as settings:
    with ray_cluster.environment(settings), ray_cluster.connected(Compute(workers=1)):
        print(ray.get(ray.remote(num_cpus=0)(lambda: "answer").remote()))
"""


def test_a_local_ray_starts_although_its_first_worker_dies(tmp_path: Path) -> None:
    (tmp_path / "dies_first.py").write_text(DIES_FIRST.replace("MARK", repr(str(tmp_path / "mark"))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment |= {"RAY_ADDRESS": "", "RAY_worker_register_timeout_seconds": "5", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", CALL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "answer\n"
    assert (tmp_path / "mark").exists()


@pytest.mark.usefixtures("local_ray")
def test_workers_are_forks_with_ids_of_their_own() -> None:
    workers: list[Any] = [Worker.remote() for _ in range(5)]  # type: ignore[attr-defined]
    found = ray.get([worker.describe.remote() for worker in workers])
    assert all(one["has torch"] for one in found)
    (parent,) = {one["parent"] for one in found}
    assert "fork_server" in Path(f"/proc/{parent}/cmdline").read_text()
    ids = [name for one in found for name in one["ids"]]
    assert len(set(ids)) == len(ids)
