"""The network interface that gloo uses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.train.torch import TorchConfig
from torch import distributed

from txclf.training.distributed import gloo
from txclf.training.distributed.gloo import GlooTorchConfig, interface_of


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the addresses of interfaces")
def test_interface_of_loopback_is_lo() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_interface_of_a_foreign_address_is_none() -> None:
    assert interface_of("192.0.2.1") is None  # TEST-NET-1, RFC 5737


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[/a/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2ms for recv operation"),
            "Timed out waiting 2ms for recv operation",
        ),
        (
            RuntimeError("[/a/gloo/transport/tcp/pair.cc:5] Connection closed by peer [::1]:2. This is typically"),
            "Connection closed by peer [::1]:2",
        ),
        (distributed.DistBackendError("NCCL error in: a.cpp\nmore"), "NCCL error in: a.cpp"),
        (RuntimeError("out of memory"), None),
        (ValueError("gloo/transport"), None),
    ],
)
def test_reason_is_the_first_line_of_a_failed_collective(error: Exception, expected: str | None) -> None:
    assert gloo.reason(error) == expected


def test_config_stands_for_that_of_ray_and_imports_no_torch() -> None:
    theirs, ours = TorchConfig("gloo", timeout_s=7), GlooTorchConfig("gloo", 7)
    assert (ours.framework, ours.train_func_context) == (theirs.framework, theirs.train_func_context)
    assert ours.to_dict() == {"backend": "gloo", "timeout_s": 7}
    assert ours.backend_cls.share_cuda_visible_devices == theirs.backend_cls.share_cuda_visible_devices
    code = (
        "import sys; from txclf.training.distributed import ray_data; from txclf.training.distributed.gloo import "
        "GlooTorchConfig; GlooTorchConfig('gloo', 7).backend_cls(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
