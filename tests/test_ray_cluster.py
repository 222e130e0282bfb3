"""Connection to Ray, and checks of the cluster."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import node, parameter

from txclf import ray_cluster
from txclf.config.sections import Compute
from txclf.core.errors import ClusterError
from txclf.upstream import local_ray


@pytest.mark.parametrize("address", ["nowhere", "localhost:port", "ray://localhost"])
def test_connected_malformed_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "SETTINGS", {})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ClusterError, match=rf"Ray at `{address}` cannot be joined: .* `auto` or `host:port`"),
        ray_cluster.connected(Compute(workers=1, address=address)),
    ):
        pass


def test_connected_closed_port_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "SETTINGS", {})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with (
        pytest.raises(ClusterError, match=rf"Ray at `127\.0\.0\.1:{port}` cannot be joined"),
        ray_cluster.connected(Compute(workers=1)),
    ):
        pass


def test_connected_local_ray_that_does_not_start_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with (
        pytest.raises(ClusterError, match=r"Ray does not start on this machine: .*file.*\. Check `RAY_TMPDIR`"),
        ray_cluster.connected(Compute(workers=1)),
    ):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_connected_local_ray_has_no_monitors_and_no_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parameter.RayParams, node.Node.start_api_server
    monkeypatch.setenv("RAY_ADDRESS", "local")  # Ray's own word for what happens without an address
    with ray_cluster.connected(Compute(workers=1)):
        assert (parameter.RayParams, node.Node.start_api_server) == whole
        started: Any = ray._private.worker._global_node
        assert set(started.all_processes) - {"reaper"} == {"gcs_server", "raylet"}
        assert local_ray.is_joined()
        assert ray.get(ray.remote(num_cpus=0)(local_ray.is_joined).remote())


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "workers"),
    [
        ({"CPU": 8.0}, 2, 0, 4),
        ({"CPU": 8.0, "GPU": 1.0}, 2, 0.5, 2),
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 0.3}, 0.1, 0, 3),
    ],
)
def test_room_of_a_node_is_limited_by_its_scarcest_resource(
    resources: dict[str, float], cpus: float, gpus: float, workers: int
) -> None:
    assert ray_cluster._room(resources, {"CPU": cpus, "GPU": gpus}) == workers
    assert ray_cluster.fits(resources, Compute(cpus_per_worker=cpus, gpus_per_worker=gpus)) == (workers > 0)


@pytest.mark.parametrize(
    ("gpus", "per_worker", "said"),
    [
        (0.0, 0, None),
        (4.0, 0.5, None),
        (
            4.0,
            0,
            "Ray has 8 GPU(s), of which the workers take none. Set the GPUs per worker to 1 to use them.",
        ),
    ],
)
def test_unused_gpus_are_named(
    gpus: float, per_worker: float, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": gpus}}
    monkeypatch.setattr(ray, "nodes", lambda: [node, node, {**node, "Alive": False}])
    assert ray_cluster.unused_gpus(Compute(workers=2, gpus_per_worker=per_worker)) == said
