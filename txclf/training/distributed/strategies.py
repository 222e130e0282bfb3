"""Lightning strategies that distribute the model over workers: DDP or FSDP (arXiv:2304.11277).

With DDP each worker holds a copy of the model, with FSDP a shard. Checkpoints and the bundle hold whole tensors, so a
run can be resumed under the other strategy and on another number of workers. FSDP is torch's `fully_shard`, which also
works over gloo on CPUs.
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
from torch.futures import Future

from txclf import upstream
from txclf.config.sections import Compute
from txclf.model.classifier import TransformerClassifier
from txclf.model.pretrained import PretrainedClassifier


def strategy(compute: Compute) -> RayDDPStrategy:
    """Return Lightning's strategy for workers of Ray Train."""
    return (
        FSDPStrategy(compute.gradient_dtype)
        if compute.strategy == "fsdp"
        else SparseEmbeddingDDP(compute.gradient_dtype)
    )


class SparseEmbeddingDDP(RayDDPStrategy):
    """DDP that all-reduces only the non-zero rows of the embedding gradient on CPU.

    The embedding gradient is the largest of a small model, but only the tokens of the batch have non-zero rows. It is
    ready last, so no computation is left to overlap its communication. GPUs send the whole gradient, because selecting
    rows would synchronize them with the host.
    """

    def __init__(self, gradient_dtype: str) -> None:
        self.dtype = torch.bfloat16 if gradient_dtype == "bf16" else torch.float32
        self.embedding: Tensor | None = None
        super().__init__(  # type: ignore[no-untyped-call]
            # Buffers are equal by construction, and broadcasting them would hang ranks with fewer validation batches.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # saves a copy of the gradients
            ddp_comm_hook=bf16_compress_hook if gradient_dtype == "bf16" else None,
        )

    def configure_ddp(self) -> None:
        """Wrap the model in DDP without its embedding, which `exchange_rows` handles."""
        module: Any = self.lightning_module
        if self.root_device.type == "cpu" and isinstance(module.model, TransformerClassifier | PretrainedClassifier):
            self.embedding = module.model.embedding.weight
            distributed.broadcast(self.embedding.detach(), 0)  # DDP does this for the other parameters
            name = next(name for name, parameter in module.named_parameters() if parameter is self.embedding)
            upstream.exclude_from_ddp(module, [name])
        super().configure_ddp()
        if self.dtype == torch.bfloat16 and self.root_device.type == "cpu":  # Lightning registers hooks on GPUs only
            model: Any = self.model
            model.register_comm_hook(None, lambda _, bucket: _reduce_in_bf16(bucket))

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Exchange the embedding's gradient between the last backward pass and clipping."""

        def closure_and_exchange() -> Any:
            result = closure()
            if self.embedding is not None and self.embedding.grad is not None:
                exchange_rows(self.embedding.grad, self.dtype)
            return result

        return super().optimizer_step(optimizer, closure_and_exchange, model, **kwargs)


def _reduce_in_bf16(bucket: Any) -> Future[Tensor]:
    """Replace a bucket of gradients by its mean over all ranks: `bf16_compress_hook`, which torch refuses on CPUs."""
    values = bucket.buffer().to(torch.bfloat16).div_(distributed.get_world_size())
    reduced: Any = distributed.all_reduce(values, async_op=True)
    future: Future[Tensor] = reduced.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))
    return future


def exchange_rows(gradient_VD: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Replace a gradient by its mean over all ranks.

    Only rows that are non-zero on some rank are sent, in `dtype`.
    """
    nonzero_V = gradient_VD.any(dim=1).to(torch.uint8)
    distributed.all_reduce(nonzero_V, distributed.ReduceOp.MAX)
    rows = nonzero_V.nonzero().squeeze(1)
    if len(rows):
        values = gradient_VD[rows].to(dtype).div_(distributed.get_world_size())
        distributed.all_reduce(values)
        gradient_VD[rows] = values.to(gradient_VD.dtype)


class FSDPStrategy(RayDDPStrategy):
    """FSDP: each rank holds a shard of every block's weights, gradients and optimizer state."""

    def __init__(self, gradient_dtype: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reduce_dtype = torch.bfloat16 if gradient_dtype == "bf16" else None

    def model_to_device(self) -> None:
        """Shard the model, then move the rest to the device.

        `fully_shard` moves one block at a time to the device and keeps this rank's shard there, so a model may be
        larger than a device.
        """
        self._shard()
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Leave the model unwrapped, because it is sharded."""

    def _shard(self) -> None:
        assert self.lightning_module is not None
        model: Any = self.lightning_module.model
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        policy = MixedPrecisionPolicy(reduce_dtype=self.reduce_dtype)
        decoder = getattr(model, "decoder", ())
        for module in [*getattr(model, "encoder", model).blocks, *decoder, model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)
        for block in decoder:  # generation calls these instead of `forward`
            for method in ("memory", "decode"):
                register_fsdp_forward_method(block, method)
