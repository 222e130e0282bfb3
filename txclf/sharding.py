"""How several workers share the model: a copy each (DDP), or a shard each (FSDP, arXiv:2304.11277).

Checkpoints and the bundle hold whole tensors either way, so a run may be resumed under the other strategy and on
another number of workers. FSDP here is torch's `fully_shard`, which works over gloo on CPUs too.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.train.lightning import RayDDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from txclf.sections import Compute


def strategy(compute: Compute) -> RayDDPStrategy:
    """Lightning's strategy for workers of Ray Train."""
    if compute.strategy == "fsdp":
        return Sharded(compute.gradient_dtype)
    hook = bf16_compress_hook if compute.gradient_dtype == "bf16" else None
    # Buffers are equal by construction, and broadcasting them would hang ranks with fewer validation batches.
    # Gradients that are views of what is sent need no copy.
    return RayDDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, ddp_comm_hook=hook)  # type: ignore[no-untyped-call]


class Sharded(RayDDPStrategy):
    """Each rank holds a shard of every block's weights, gradients and optimizer state."""

    def __init__(self, gradient_dtype: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reduce_dtype = torch.bfloat16 if gradient_dtype == "bf16" else None

    def configure_ddp(self) -> None:
        """Shards the model in place of wrapping it."""
        assert self.lightning_module is not None
        model: Any = self.lightning_module.model
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        policy = MixedPrecisionPolicy(reduce_dtype=self.reduce_dtype)
        decoder = getattr(model, "decoder", ())
        for module in [*model.blocks, *decoder, model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)
        for block in decoder:  # what is called of it in place of `forward`
            for method in ("memory", "decode"):
                register_fsdp_forward_method(block, method)
