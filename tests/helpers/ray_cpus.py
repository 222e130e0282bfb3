"""Other work on the Ray of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def every_cpu_taken() -> Iterator[None]:
    """Let an actor hold all CPUs of the connected Ray during the block."""
    import ray

    @ray.remote(num_cpus=int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    class Holder:
        def answer(self) -> bool:
            return True

    holder = Holder.remote()  # type: ignore[attr-defined]
    assert ray.get(holder.answer.remote())
    try:
        yield
    finally:
        ray.kill(holder)
