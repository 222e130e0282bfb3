"""Messages between the processes of a run."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

from txclf.training.progress import Heartbeat, Progress


def test_beat_counts_and_says_what_the_rank_does() -> None:
    heartbeat = Heartbeat()
    heartbeat.beat("training", 3)
    heartbeat.beat("validating", 4)
    assert (heartbeat.beats, heartbeat.activity, heartbeat.step) == (2, "validating", 4)


def test_progress_survives_pickle_and_has_no_loss_at_first() -> None:
    progress = pickle.loads(pickle.dumps(Progress(step=2, notes=["note"])))
    assert (progress.step, progress.notes) == (2, ["note"])
    assert math.isnan(progress.train_loss)


def test_import_is_light() -> None:
    code = "import sys, txclf.training.progress; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "pytorch_lightning", "ray", "numpy"} & set(loaded)
