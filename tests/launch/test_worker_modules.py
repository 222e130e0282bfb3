"""A process that has imported what workers need can be forked into workers that draw different ids."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, sys
import txclf.training.worker
import txclf.launch.worker_modules
assert {"ray.data", "ray.train.lightning", "txclf.training.distributed.ray_trainer"} <= {*sys.modules}
from ray._raylet import UniqueID
drawn = set()
for _ in range(3):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, UniqueID.from_random().binary())
        os._exit(0)
    drawn.add(os.read(reader, 100))
print(len(drawn))
"""


def test_forks_draw_different_ids() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr
