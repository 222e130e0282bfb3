"""Commands run as jobs of a real Ray cluster: sent, followed, stopped, kept out without the token."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from tests.helpers.runs import TINY
from tests.helpers.testbed import METRICS, TOKEN, Testbed, environment
from tests.helpers.waiting import PATIENCE_S, wait_until
from txclf import Classifier, _version
from txclf.artifacts import attempts, checkpoints
from txclf.core.errors import ClusterError, ConfigError, StorageError
from txclf.launch import jobs

TXCLF = str(Path(sys.executable).with_name("txclf"))


# --------------------------------------------------------------------------------------------------- before it is sent


def run_file(folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text("name: mine\n")
    return str(path)


def test_submit_relative_storage_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`storage: runs` would lie in the job's own folder"):
        jobs.submit("http://127.0.0.1:1", "train", [run_file(tmp_path)], str(tmp_path))


@pytest.mark.parametrize("words", [["--out", "found.csv"], ["--out=./found.csv"]])
def test_submit_relative_output_of_predict_raises(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"`--out .*found.csv` would lie in the job's own folder"):
        jobs.submit("http://127.0.0.1:1", "predict", ["s3://b/model", "s3://b/in.csv", *words], str(tmp_path))


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (-9, 137), (None, 1)])
def test_follow_returns_the_exit_code_as_a_shell_has_it(code: int | None, expected: int) -> None:
    class Client:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "the log"

        def get_job_info(self, job: str) -> JobDetails:
            return JobDetails(
                type=JobType.SUBMISSION,
                status=JobStatus.FAILED,
                message="killed",
                driver_exit_code=code,
                entrypoint="",
            )

    shown: list[str] = []
    assert jobs.follow(Client(), "j", shown.append) == expected
    assert shown[0] == "the log"


def test_follow_connection_that_breaks_is_one_message() -> None:
    class BrokenClient:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "step 1"
            raise RuntimeError("WebSocket connection closed unexpectedly")

    shown: list[str] = []
    with pytest.raises(ClusterError, match=r"the connection to the cluster broke\. The job goes on: `txclf jobs"):
        jobs.follow(BrokenClient(), "j", shown.append)
    assert shown == ["step 1"]


def test_submit_words_with_credentials_raise(tmp_path: Path) -> None:
    for words in (["s3://me:very%2Fsecret@b/model", "in.csv"], ["in.csv", "--out=s3://b/o.csv?secret_key=hidden"]):
        with pytest.raises(StorageError, match=r"`s3://…`: credentials do not belong into a URI") as info:
            jobs.submit("http://127.0.0.1:1", "predict", words, str(tmp_path))
        assert "secret@" not in str(info.value)
        assert "hidden" not in str(info.value)


def test_submit_distill_checks_the_run_file_after_the_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`storage: runs` would lie in the job's own folder"):
        jobs.submit("http://127.0.0.1:1", "distill", ["/shared/model", run_file(tmp_path)], str(tmp_path))
    with pytest.raises(ConfigError, match="`distill`: no run file"):
        jobs.submit("http://127.0.0.1:1", "distill", ["/shared/model"], str(tmp_path))


def test_submit_checks_the_run_file_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`train\.epoch`: unknown key"):
        jobs.submit("http://127.0.0.1:1", "train", [run_file(tmp_path), "train.epoch=3"], str(tmp_path))
    with pytest.raises(ConfigError, match="`serve`: expected one of train, distill"):
        jobs.submit("http://127.0.0.1:1", "serve", [run_file(tmp_path)], str(tmp_path))


def run_below(parent: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run the entrypoint of `txclf config --schema` as the child of a Python program, as Ray's job supervisor does."""
    command = jobs.entrypoint(["config", "--schema"])
    program = f"{parent}\nimport subprocess, sys\nsys.exit(subprocess.run({command!r}, shell=True).returncode)"
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": path, "PYTHONPATH": str(Path(_version.__file__).parents[1])},
        timeout=PATIENCE_S,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_entrypoint_below_ray_runs_the_interpreter_of_ray(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho another python\n")
    (tmp_path / "python").chmod(0o755)
    done = run_below("import ray", f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert '"properties"' in done.stdout
    # Without Ray in the parent it is the `python` of the PATH.
    assert run_below("", f"{tmp_path}:/usr/bin:/bin").stdout == "another python\n"


# ------------------------------------------------------------------------------------------------------- on a cluster


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    """Start a head without CPUs and two nodes of one CPU, with a dashboard and a token."""
    with Testbed(head_cpus=0, dashboard=True) as made:
        made.add("one", 1)
        made.add("two", 1)
        yield made


def txclf(bed: Testbed, folder: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*bed.head.within, TXCLF, *words, "--address", bed.dashboard],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment(), **changed},
        timeout=300,
    )


def settings(folder: Path, data: str, *words: str) -> list[str]:
    run_file(folder)
    return ["mine.yaml", *TINY, f"data.train={data}", f"storage={folder}/runs", "compute.workers=2", *words]


@pytest.mark.faults
def test_submit_trains_on_two_nodes_and_returns_log_and_exit_code(bed: Testbed, tmp_path: Path, data: str) -> None:
    done = txclf(bed, tmp_path, "submit", "train", *settings(tmp_path, data))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "│ workers" in done.stdout
    assert Classifier.load(f"{tmp_path}/runs/mine/model")(["a good film"])[0].label in ("neg", "pos")
    again = txclf(bed, tmp_path, "submit", "train", *settings(tmp_path, data))
    assert again.returncode == 2
    assert "exists already. Pass --resume" in again.stdout
    listed = txclf(bed, tmp_path, "jobs", "list")
    assert "mine" in listed.stdout
    assert "succeeded" in listed.stdout
    assert "failed" in listed.stdout
    for path in [*tmp_path.rglob("*"), *bed.folder.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_submit_without_the_token_raises(bed: Testbed, tmp_path: Path, data: str, token: str) -> None:
    done = txclf(bed, tmp_path, "submit", "train", *settings(tmp_path, data), RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "needs the token of the cluster. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.faults
def test_submit_reads_the_token_from_a_file(bed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    known = {name: value for name, value in environment().items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [*bed.head.within, TXCLF, "jobs", "list", "--address", bed.dashboard],
        check=False,
        capture_output=True,
        text=True,
        env={**known, "HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def sent_job(bed: Testbed, folder: Path, *words: str) -> Iterator[str]:
    """Send a job without waiting, yield its id once it trains, and stop it at the end."""
    sent = txclf(bed, folder, "submit", "--no-wait", *words)
    assert sent.returncode == 0, sent.stderr
    job = sent.stderr.split("job ")[1].split(":")[0]
    log = folder / "runs/mine/metrics.jsonl"
    before = log.read_bytes().count(b"train_loss") if log.exists() else 0
    try:
        wait_until(lambda: log.exists() and log.read_bytes().count(b"train_loss") > before + 50)
        yield job
    finally:
        txclf(bed, folder, "jobs", "stop", job)


class Terminal:
    """`txclf jobs logs` of a job, at a terminal."""

    def __init__(self, bed: Testbed, job: str) -> None:
        self.ours, theirs = pty.openpty()
        self.said = b""
        words = [*bed.head.within, TXCLF, "jobs", "logs", job, "--address", bed.dashboard]
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), start_new_session=True
        )

    def shows(self, text: bytes) -> bool:
        """Read what it says, or it could not write to a terminal that is full."""
        self.said += os.read(self.ours, 10_000) if select.select([self.ours], [], [], 0.1)[0] else b""
        return text in self.said

    def interrupt_and_answer(self, answer: str) -> int:
        """Press Ctrl-C, answer whether the job is to stop, and return the exit code."""
        wait_until(lambda: self.shows(b"epoch"))
        os.killpg(self.process.pid, signal.SIGINT)
        wait_until(lambda: self.shows(b"it keeps running"))
        os.write(self.ours, f"{answer}\n".encode())
        wait_until(lambda: self.shows(b"") and self.process.poll() is not None)
        return self.process.returncode


@pytest.mark.faults
def test_jobs_ctrl_c_asks_whether_to_stop_the_job_and_a_stopped_run_resumes(
    bed: Testbed, tmp_path: Path, data: str
) -> None:
    endless = ["train.epochs=5000", "train.eval_every=5", "train.early_stopping_patience=0"]
    words = settings(tmp_path, data, *endless)

    def has_state(wanted: str) -> bool:
        return txclf(bed, tmp_path, "jobs", "status", job).stdout.strip() == wanted

    with sent_job(bed, tmp_path, "train", *words) as job:
        terminal = Terminal(bed, job)
        assert terminal.interrupt_and_answer("n") == 130
        assert has_state("running")
        wait_until(lambda: terminal.shows(b"keeps running: txclf jobs logs"))
        assert Terminal(bed, job).interrupt_and_answer("y") == 130
        wait_until(lambda: has_state("stopped"))
    saved = checkpoints.committed(f"{tmp_path}/runs/mine/checkpoints")
    assert saved
    names = ("epoch", "train_loss", "tokens_per_second", "valid", "data_wait_seconds", "gpu_memory_bytes", "step")
    with sent_job(bed, tmp_path, "train", *words, "--resume") as job:
        second = attempts.read(f"{tmp_path}/runs/mine")[1]
        assert (second.step, second.repeated) == (saved[-1].step, 0)
        if bed.namespaces:
            shown = [re.compile(rf'^ray_txclf_{name}{{.*run="mine"', re.MULTILINE) for name in names]
            wait_until(lambda: all(pattern.search(metrics(bed)) for pattern in shown))
            assert TOKEN not in metrics(bed)
        assert txclf(bed, tmp_path, "jobs", "stop", job).returncode == 0
        wait_until(lambda: has_state("stopped"))
    assert "no such job" in txclf(bed, tmp_path, "jobs", "status", "none").stderr


def metrics(bed: Testbed) -> str:
    """Return the metrics that Prometheus would read from the head."""
    code = f"from urllib.request import urlopen; print(urlopen('http://{bed.head.address}:{METRICS}/metrics').read().decode())"
    done = subprocess.run([*bed.head.within, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.faults
def test_submit_tune_then_predict(bed: Testbed, tmp_path: Path, data: str) -> None:
    words = settings(tmp_path, data, "compute.workers=1")
    (tmp_path / "mine.yaml").write_text("tune: {trials: 3, space: {train.batch_size: {choice: [8, 16]}}}\n")
    done = txclf(bed, tmp_path, "submit", "tune", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    model = f"{tmp_path}/runs/mine-1/model"  # by the name of its run file
    assert Classifier.load(model)
    done = txclf(bed, tmp_path, "submit", "predict", model, data, "--out", f"{tmp_path}/out.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out.csv").read_text().count("\n") == 301


@pytest.mark.faults
def test_submit_sends_the_local_txclf(bed: Testbed, tmp_path: Path, data: str) -> None:
    """Another version than the cluster has: every node runs the one that was sent from."""
    shutil.copytree(Path(_version.__file__).parent, tmp_path / "other" / "txclf")
    changed = tmp_path / "other/txclf/_version.py"
    changed.write_text(re.sub(r'__version__ = ".*"', '__version__ = "9.8.7"', changed.read_text()))
    words = ["-m", "txclf", "submit", "check", *settings(tmp_path, data), "--address", bed.dashboard]
    done = subprocess.run(
        [*bed.head.within, sys.executable, *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(tmp_path / "other")},
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"pass  versions: .*txclf 9\.8\.7\n", done.stdout), done.stdout
    assert "is read and written by 3 node(s)" in done.stdout


@pytest.mark.faults
def test_submit_job_survives_a_lost_node(bed: Testbed, tmp_path: Path, data: str) -> None:
    words = settings(tmp_path, data, "compute.workers=[1, 2]", "train.epochs=20", "train.early_stopping_patience=0")
    with sent_job(bed, tmp_path, "train", *words, "train.checkpoint_every=10") as job:
        bed.kill(bed.nodes["two"])
        done = txclf(bed, tmp_path, "jobs", "logs", job)
        assert done.returncode == 0, done.stdout + done.stderr
        assert Classifier.load(f"{tmp_path}/runs/mine/model")
        assert len(attempts.read(f"{tmp_path}/runs/mine")) > 1
        assert txclf(bed, tmp_path, "jobs", "status", job).stdout == "succeeded\n"
