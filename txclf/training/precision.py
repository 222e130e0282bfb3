"""What the hardware allows: the training precision, bf16 if there is any, and the GPUs of the workers."""

from __future__ import annotations

from typing import Literal

from txclf.config.sections import Compute
from txclf.core.errors import ConfigError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def uses_gpu(compute: Compute) -> bool:
    """Return True if the model trains on a GPU: in this process if it has one, in workers if they get any."""
    if compute.on_ray:
        return compute.gpus_per_worker > 0
    import torch  # takes a second, and commands without training ask too

    return torch.cuda.is_available()


def require_usable_gpus(compute: Compute) -> None:
    """Raise `ConfigError` if a worker would get GPUs that it cannot use, or share one with a worker of the same run."""
    gpus = compute.gpus_per_worker
    if compute.on_ray and gpus > 1:
        raise ConfigError(
            f"`compute.gpus_per_worker` ({gpus:g}): a worker trains on one GPU. Set it to 1, and `compute.workers` to "
            "the number of GPUs of a run."
        )
    if compute.max_workers > 1 and 0 < gpus < 1:  # NCCL refuses two ranks on one device
        raise ConfigError(
            f"`compute.gpus_per_worker` ({gpus:g}): the workers of a run cannot share a GPU. Set it to 1, or "
            "`compute.workers` to 1."
        )


def choose_precision(setting: str, gpu: bool) -> tuple[Precision, str]:
    """Return Lightning's name of the precision on this machine, and the reason.

    Raises `ConfigError` for a precision that the machine lacks.
    """
    if setting == "fp32":
        return "32-true", "as the run file says"
    if setting == "bf16":
        return "bf16-mixed", "as the run file says"
    if setting == "fp16":
        if not gpu:
            raise ConfigError("`train.precision: fp16` needs a GPU. Set `auto`, `bf16` or `fp32`.")
        return "16-mixed", "as the run file says"
    import torch

    if gpu:
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} multiplies bf16 in hardware"
        return "32-true", f"{name} has no bf16 in hardware"
    if torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed", "this CPU has AVX512-BF16"
    return "32-true", "this CPU has no fast bf16 (neither AMX nor AVX512-BF16)"
