"""A process that has imported what workers need can be forked into workers that draw different ids."""

from __future__ import annotations

import pytest

from tests.helpers.forks import require_different_ids


def test_forks_draw_different_ids() -> None:
    require_different_ids("""
import sys
import txclf.training.worker
import txclf.launch.worker_modules
assert {"ray.data", "ray.train.lightning", "txclf.training.distributed.ray_trainer"} <= {*sys.modules}
""")


def test_forks_after_an_early_import_would_draw_the_same_ids() -> None:
    with pytest.raises(AssertionError, match="the forks have drawn the same ids"):
        require_different_ids("import ray.data")
