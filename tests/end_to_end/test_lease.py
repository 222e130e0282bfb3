"""A second driver next to a living one is refused, and resumes once the first was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers.runs import TINY, tiny
from tests.helpers.waiting import wait_until
from txclf.artifacts import attempts, checkpoints

TXCLF = str(Path(sys.executable).with_name("txclf"))


def test_train_next_to_a_living_driver_is_refused_until_it_is_killed(tmp_path: Path, data: str) -> None:
    (tmp_path / "run.yaml").write_text("name: run\n")
    overrides = [*TINY, f"data.train={data}", f"storage={tmp_path}", "train.epochs=5000", "train.checkpoint_every=10"]
    run = tiny(tmp_path, data, "name=run")
    command = [TXCLF, "train", "run.yaml", *overrides]
    first = subprocess.Popen(command, cwd=tmp_path, text=True)
    second: subprocess.Popen[str] | None = None
    try:
        wait_until(lambda: bool(checkpoints.committed(f"{run.run_folder}/checkpoints")), first)
        refused = subprocess.run([*command, "--resume"], check=False, cwd=tmp_path, capture_output=True, text=True)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr
        assert f"process {first.pid} on `" in refused.stderr
        assert first.poll() is None
        assert len(attempts.read(run.run_folder)) == 1
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        second = subprocess.Popen([*command, "--resume"], cwd=tmp_path, text=True)
        wait_until(lambda: len(attempts.read(run.run_folder)) == 2, second)
        second.terminate()
        assert second.wait(60) == 143
        assert not Path(run.run_folder, "lease.json").exists()
    finally:
        for process in (first, second):
            if process:
                process.kill()
                process.wait()
