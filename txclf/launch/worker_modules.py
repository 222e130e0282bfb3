"""What the workers of a local Ray import of Ray before they are forked."""

from __future__ import annotations

from txclf.upstream import local_ray

with local_ray.unseeded_class_ids():
    import ray.data
    import ray.train.lightning  # noqa: F401

    import txclf.training.distributed.ray_trainer  # noqa: F401
