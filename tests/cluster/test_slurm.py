"""The Slurm script, with stand-ins for `srun` and `scontrol` that start processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.runs import TINY, prepare_here, tiny
from tests.helpers.waiting import PATIENCE_S, wait_until
from txclf import Classifier
from txclf.artifacts import attempts, checkpoints

ROOT = Path(__file__).parents[2]
STAND_INS = {
    "scontrol": 'test "$1 $2" = "show hostnames" && echo "$3" | tr , "\\n"\n',
    # As srun does, it passes SIGTERM on and waits for the end.
    "srun": """
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && node=${1#*=}
    shift
done
if [[ $node == "${BROKEN_NODE:-}" ]]; then echo "$node: no such luck"; exit 9; fi
SLURM_CPUS_ON_NODE=1 "$@" &
trap "kill $!" TERM
wait $!
trap "" TERM
wait $!
""",
}


class Slurm:
    """Run the script as sbatch does: in the folder of submission, with the variables of Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        (folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/usr/bin/env bash\n{text}")
            path.chmod(0o755)

    def start(self, *words: str, **changed: str) -> subprocess.Popen[str]:
        slurm = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "one,two",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_CPUS_ON_NODE": "1",
            "TXCLF_HEAD_IP": "127.0.0.1",
            "PATH": f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "MARK": self.mark,
        }
        return subprocess.Popen(
            ["bash", str(ROOT / "cluster/slurm.sh"), *words],
            env={**os.environ, **slurm, **changed},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ends(self) -> None:
        """Fail if a process of the script is alive five seconds after its end."""
        deadline = time.monotonic() + 5
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not self.left()

    def left(self) -> dict[int, bytes]:
        """Return the processes of the script and its children, with their command lines."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"MARK={self.mark}".encode() in path.read_bytes().split(b"\0"):
                    found[int(path.parent.name)] = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
        return found


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    made = Slurm(tmp_path)
    yield made
    for pid in made.left():
        os.kill(pid, signal.SIGKILL)


def settings(folder: Path, data: str, *words: str) -> list[str]:
    (folder / "mine.yaml").write_text("name: mine\n")
    prepare_here(tiny(folder / "runs", data))
    return ["mine.yaml", *TINY, f"data.train={data}", f"storage={folder}/runs", "compute.workers=2", *words]


@pytest.mark.faults
def test_slurm_job_near_its_time_limit_is_resumed_and_returns_its_exit_code(
    slurm: Slurm, tmp_path: Path, data: str
) -> None:
    words = settings(tmp_path, data, "train.epochs=15", "train.early_stopping_patience=0")
    process = slurm.start("train", *words)
    token = tmp_path / f".ray-{os.getpid()}/token"
    wait_until(lambda: token.exists() and token.stat().st_size == 64, process)
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    secret, log = token.read_text(), tmp_path / "runs/mine/metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_bytes().count(b"train_loss") > 50, process)
    seen = slurm.left().values()
    assert len(seen) > 5
    assert not [line for line in seen if secret.encode() in line]
    process.send_signal(signal.SIGTERM)  # as `--signal=B:TERM@120` does: to the script alone
    out = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 143, out
    assert "Ray: 2 nodes; the dashboard: ssh -L 8265:127.0.0.1:" in out
    assert secret not in out
    saved = checkpoints.committed(f"{tmp_path}/runs/mine/checkpoints")
    assert 50 < saved[-1].step < 15 * 17
    assert not token.parent.exists()
    slurm.ends()
    # Slurm restarts the job with the same arguments, without `--resume`.
    process = slurm.start("train", *words, SLURM_RESTART_COUNT="1")
    out = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, out
    second = attempts.read(f"{tmp_path}/runs/mine")[1]
    assert (second.step, second.workers) == (saved[-1].step, 2)
    assert Classifier.load(f"{tmp_path}/runs/mine/model")(["a good film"])[0].label in ("neg", "pos")
    assert not token.parent.exists()
    slurm.ends()


@pytest.mark.faults
def test_slurm_failed_run_returns_its_exit_code(slurm: Slurm, tmp_path: Path, data: str) -> None:
    process = slurm.start("train", *settings(tmp_path, data), BROKEN_NODE="two")
    out = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 1, out
    assert "Ray did not start on 2 nodes" in out
    assert "two: no such luck" in out
    process = slurm.start("train", *settings(tmp_path, data, "compute.workers=9"))
    out = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 2, out
    assert "`compute.workers` (9)" in out
    slurm.ends()
