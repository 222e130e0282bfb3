"""Gloo process groups of torch on the network interface that the Ray cluster uses, and the errors of collectives.

By default gloo binds to the address that the host name resolves to. On many machines that is 127.0.0.1 or 127.0.1.1:
workers on one node find each other, workers on two nodes do not.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.train.backend import Backend, BackendConfig

from txclf import upstream

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915
"""The Linux request for the address of an interface (netdevice(7))."""


@dataclass
class GlooTorchConfig(BackendConfig):
    """A `TorchConfig` of Ray Train that sets `GLOO_SOCKET_IFNAME` on each worker whose environment does not set it.

    It imports torch on the workers only.
    """

    backend: str
    """Backend of torch's process groups: `gloo` or `nccl`."""
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """A torch backend that sets the interface first."""
        return upstream.torch_backend(_use_cluster_interface)

    @property
    def train_func_context(self) -> Any:
        """Context that sets the GPU of a worker."""
        return self._of_ray().train_func_context

    @property
    def framework(self) -> Any:
        """Framework, for the dashboard."""
        return self._of_ray().framework

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, for the dashboard."""
        return asdict(self)

    def _of_ray(self) -> TorchConfig:
        from ray.train.torch import TorchConfig  # and torch

        return TorchConfig(self.backend, timeout_s=self.timeout_s)


def _use_cluster_interface() -> None:
    name = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def reason(error: BaseException) -> str | None:
    """Return the reason of a failed collective, such as a peer that hangs or is gone; None for any other error."""
    from torch import distributed

    text = str(error).strip()
    # Gloo's errors have no type of their own, but they name its source file.
    if not (isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in text)):
        return None
    line = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"^\[[^\]]*\][: ]*", "", line).partition(". This is")[0][:200]


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with an IPv4 address, or None if no interface is known to have it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # the interface has no address, or this is not Linux
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
