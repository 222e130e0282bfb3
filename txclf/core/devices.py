"""The CPUs and GPUs of a worker, set in its process on Ray."""

from __future__ import annotations

import math
import os
import platform

from txclf.core.errors import ClusterError


def take(cpus: float, gpus: float) -> None:
    """Limit this process to the threads of some CPUs, and to no GPU unless it was given any."""
    if not gpus:
        # Ray leaves it alone, and the GPUs belong to processes that request them.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(max(1, math.floor(cpus)))


def require(gpus: float) -> None:
    """Raise `ClusterError` if this process was given a GPU that PyTorch cannot use: it would compute on the CPU."""
    import torch

    if gpus and not torch.cuda.is_available():
        raise ClusterError(
            f"Ray has a GPU on node {platform.node()}, but PyTorch {torch.__version__} cannot use it there. Install "
            "PyTorch for CUDA, or a driver that knows its CUDA version; `txclf check` shows the nodes."
        )
