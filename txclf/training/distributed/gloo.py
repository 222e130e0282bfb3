"""Torch's process groups under Ray Train: over the network interface that the cluster itself uses.

Left alone, gloo takes the address that the host name resolves to, which on many machines is 127.0.0.1 or 127.0.1.1:
workers on one node find each other, workers on two do not.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

SIOCGIFADDR = 0x8915
"""The Linux request for the address of an interface (netdevice(7))."""


class GlooTorchConfig(TorchConfig):
    """`TorchConfig` that sets `GLOO_SOCKET_IFNAME` on each worker, unless it is set there."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_take_the_interface_of_the_cluster)
        super().on_start(worker_group, backend_config)


def _take_the_interface_of_the_cluster() -> None:
    name = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Name of the network interface with an IPv4 address; None where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address, or this is not Linux
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
