"""Workers of a local Ray that start within a second, because they are forks of a process that has imported torch.

Otherwise each of them takes the seconds of its imports, on the same few CPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from txclf.config.sections import Compute
from txclf.core import fork_script, fork_server
from txclf.upstream import local_ray

IMPORTS = fork_server.Imports(
    modules=("txclf.training.worker", "pyarrow.dataset", "pyarrow.parquet", "torch.distributed"),
    main_module=local_ray.WORKER,
    late_modules=("txclf.launch.worker_modules",),
    ignored=("RAY_JOB_ID",),  # the first processes are for any job, and Ray has no other job
)


@contextmanager
def forked(compute: Compute, *, always: bool = False) -> Iterator[None]:
    """Fork the workers of a local Ray that is started in the block, if a run uses one or `always`.

    The earlier the block begins, the more of the imports happen beside those of this process. Nothing changes on a
    cluster, on GPUs, which a fork may not be able to use, and on systems whose libraries are not safe to fork.
    """
    is_local = (compute.on_ray or always) and (compute.address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    ray = sys.modules.get("ray")
    is_started = fork_script.SERVER in os.environ or (ray is not None and ray.is_initialized())
    if not is_local or is_started or compute.gpus_per_worker or sys.platform != "linux":
        yield
        return
    with fork_server.started(IMPORTS) as settings:
        os.environ.update(settings)
        try:
            yield
        finally:
            for name in settings:
                os.environ.pop(name, None)
