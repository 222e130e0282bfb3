"""How several workers share the model: a copy each (DDP), or a shard each (FSDP, arXiv:2304.11277).

Checkpoints and the bundle hold whole tensors either way, so a run may be resumed under the other strategy and on
another number of workers. FSDP here is torch's `fully_shard`, which works over gloo on CPUs too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.train.lightning import RayDDPStrategy
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from txclf.config.sections import Compute
from txclf.model.classifier import TransformerClassifier


def strategy(compute: Compute) -> RayDDPStrategy:
    """Lightning's strategy for workers of Ray Train."""
    return (
        FSDPStrategy(compute.gradient_dtype)
        if compute.strategy == "fsdp"
        else SparseEmbeddingDDP(compute.gradient_dtype)
    )


class SparseEmbeddingDDP(RayDDPStrategy):
    """Each rank holds all weights, and sends all gradients but for the zeros of the embedding's.

    That gradient is the largest of a small model, and has rows for the tokens of a batch alone. It is ready last, so
    sending it would hide behind nothing. GPUs send it whole: to find the rows they would have to wait for the host.
    """

    def __init__(self, gradient_dtype: str) -> None:
        self.dtype = torch.bfloat16 if gradient_dtype == "bf16" else torch.float32
        self.embedding: Tensor | None = None
        super().__init__(  # type: ignore[no-untyped-call]
            # Buffers are equal by construction, and broadcasting them would hang ranks with fewer validation batches.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # of what is sent, which saves a copy
            ddp_comm_hook=bf16_compress_hook if gradient_dtype == "bf16" else None,
        )

    def configure_ddp(self) -> None:
        """Wraps the model, and keeps the embedding for `exchange_rows`."""
        module: Any = self.lightning_module
        if self.root_device.type == "cpu" and isinstance(module.model, TransformerClassifier):
            self.embedding = module.model.embedding.weight
            distributed.broadcast(self.embedding.detach(), 0)  # as DDP does with what it sends itself
            ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
            ignore(module, ["model.embedding.weight"])
        super().configure_ddp()

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Exchanges the embedding's gradient between the last backward pass and clipping."""

        def exchanged() -> Any:
            result = closure()
            if self.embedding is not None and self.embedding.grad is not None:
                exchange_rows(self.embedding.grad, self.dtype)
            return result

        return super().optimizer_step(optimizer, exchanged, model, **kwargs)


def exchange_rows(gradient_VD: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Puts the mean over all ranks in place of a gradient. Sent are the rows that some rank has, in `dtype`."""
    there_V = gradient_VD.any(dim=1).to(torch.uint8)
    distributed.all_reduce(there_V, distributed.ReduceOp.MAX)
    rows = there_V.nonzero().squeeze(1)
    if len(rows):
        values = gradient_VD[rows].to(dtype).div_(distributed.get_world_size())
        distributed.all_reduce(values)
        gradient_VD[rows] = values.to(gradient_VD.dtype)


class FSDPStrategy(RayDDPStrategy):
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
