"""Checks of the cluster that need no Ray process."""

from __future__ import annotations

import socket

import pytest

from txclf import ray_cluster
from txclf.config.sections import Compute
from txclf.core.errors import ClusterError


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


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "workers"),
    [
        ({"CPU": 8.0}, 2, 0, 4),
        ({"CPU": 8.0, "GPU": 1.0}, 2, 0.5, 2),
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 0.3}, 0.1, 0, 3),
    ],
)
def test_room_of_a_node_is_limited_by_its_scarcest_resource(
    node: dict[str, float], cpus: float, gpus: float, workers: int
) -> None:
    assert ray_cluster._room(node, {"CPU": cpus, "GPU": gpus}) == workers
